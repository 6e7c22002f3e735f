"""Checkpointing block by block, as a user would write it into a model of the zoo.

In: a model of the zoo. Out: a copy with ``torch.utils.checkpoint`` around each of its blocks,
which computes the same with the same parameters: what a block saves is its input, and its
backward runs its forward again.
"""

from __future__ import annotations

import copy

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models_zoo.mobilenet import InvertedResidual, MobileNetV2
from models_zoo.resnet import ResNet
from models_zoo.unet import UNet
from models_zoo.vgg import VGG


class Checkpointed(nn.Module):
    """A block whose forward is run again in the backward pass.

    Args:
        block: maps one tensor to one tensor.
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        """Map what the block maps, keeping ``x`` alone."""
        result: Tensor = checkpoint(self.block, x, use_reentrant=False)
        return result


def checkpoint_blocks(model: nn.Module) -> nn.Module:
    """Copy a model with checkpoints around its blocks.

    Residual blocks of a ResNet or MobileNetV2, encoder and decoder stages of a U-Net, and of a VGG
    what lies between two max-pools. Stems, upsamplers and heads are left as they are.

    Args:
        model: of one of these four; it stays as it is.

    Returns:
        A copy that shares its parameters, and has its own buffers.

    Raises:
        ValueError: the model is of another kind.
    """
    memo: dict[int, object] = {id(parameter): parameter for parameter in model.parameters()}
    copied = copy.deepcopy(model, memo)
    if isinstance(copied, ResNet):
        for stage in (copied.layer1, copied.layer2, copied.layer3, copied.layer4):
            _wrap_children(stage)
    elif isinstance(copied, UNet):
        _wrap_children(copied.encoder)
        _wrap_children(copied.decoder)
    elif isinstance(copied, MobileNetV2):
        _wrap_children(copied.features, InvertedResidual)
    elif isinstance(copied, VGG):
        copied.features = nn.Sequential(*map(Checkpointed, _stages(copied.features)))
    else:
        raise ValueError(
            "checkpoint_blocks: expected a ResNet, UNet, MobileNetV2 or VGG of the zoo, got a "
            f"{type(model).__name__}, of which it is not known what its blocks are"
        )
    return copied


def _wrap_children(parent: nn.Module, kind: type[nn.Module] = nn.Module) -> None:
    for name, child in list(parent.named_children()):
        if isinstance(child, kind):
            setattr(parent, name, Checkpointed(child))


def _stages(features: nn.Sequential) -> list[nn.Sequential]:
    """Split layers into runs that end with a max-pool."""
    stages: list[list[nn.Module]] = [[]]
    for layer in features:
        stages[-1].append(layer)
        if isinstance(layer, nn.MaxPool2d):
            stages.append([])
    return [nn.Sequential(*stage) for stage in stages if stage]
