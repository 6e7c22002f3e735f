"""Plain stochastic rounding of everything that eager autograd saves: what is easily written.

In: a model and a number of bits. Out: a callable that runs it with every floating tensor it saves
for backward rounded at random to so many bits, in groups with a range each. It is blind to what a
tensor is read for. Where that is linear (the input of a convolution) the gradient stays unbiased;
where it is not (the mask of a relu taken from a rounded output, the products of a norm's
backward) it does not. Zeros stay zeros where they are the least of their group: no dither is
subtracted, which would turn them into noise and masks of them into coin tosses.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from passes.joint import memory_order
from xconv_fx.codecs import Quantize
from xconv_fx.sketches.quantize import dequantize_with_thresholds
from xconv_fx.sketches.randomness import SEED_BOUND


@dataclass(frozen=True)
class Rounded:
    """A saved tensor, sample by sample.

    Attributes:
        samples: codes, offsets and steps of each ``x[n : n + 1]``.
        shape: of the tensor.
        dtype: of the tensor.
        bits: of a code.
        dim_order: of a sample, in memory.
    """

    samples: tuple[tuple[Tensor, ...], ...]
    shape: torch.Size
    dtype: torch.dtype
    bits: int
    dim_order: tuple[int, ...]


def round_tensor(x: Tensor, bits: int) -> Rounded:
    """Round a tensor stochastically, drawing the seed from torch's global generator.

    One sample at a time, so that what the eager kernels take in passing stays a small part.

    Args:
        x: floating ``(N, ...)``.
        bits: 8, 4, 2 or 1.
    """
    codec, order = Quantize(bits), memory_order(x[:1])
    samples = []
    for sample in torch.split(x.detach(), 1):
        seed = torch.randint(SEED_BOUND, (), device=x.device)
        samples.append(codec.encode(sample, seed, order))
    return Rounded(tuple(samples), x.shape, x.dtype, bits, order)


def restore_tensor(rounded: Rounded) -> Tensor:
    """Rebuild a tensor; its expectation is the one that was rounded."""
    device = rounded.samples[0][0].device
    result = torch.empty(rounded.shape, dtype=rounded.dtype, device=device)
    for sample, parts in zip(torch.split(result, 1), rounded.samples, strict=True):
        size = list(sample.shape)
        sample.copy_(
            dequantize_with_thresholds(
                parts, None, size, rounded.dtype, rounded.bits, rounded.dim_order
            )
        )
    return result


@dataclass(frozen=True)
class RoundedSaves:
    """A model that saves rounded tensors; call it like the model.

    Parameters, buffers and the batch are saved as they are, and so are vectors: the statistics of
    norms, a thousandth of the bytes, which no such scheme rounds.

    Attributes:
        model: any module from one tensor to one tensor.
        bits: 8, 4, 2 or 1.
    """

    model: nn.Module
    bits: int

    def __call__(self, x: Tensor) -> Tensor:
        """Run the model on a batch ``(N, ...)``."""
        held = [*self.model.parameters(), *self.model.buffers(), x]
        saves = _Saves(self.bits, _addresses(held))
        with torch.autograd.graph.saved_tensors_hooks(saves.pack, saves.unpack):
            result: Tensor = self.model(x)
        saves.rounded.clear()  # else it would live as long as the last of them is not read
        return result


@dataclass
class _Saves:
    """What one forward has saved.

    A tensor that two operations save is rounded once. It is known by its storage and place in it;
    the weak reference keeps the storage's number, not its memory, from being used again.
    """

    bits: int
    held: frozenset[int]
    rounded: dict[tuple[object, ...], tuple[StorageWeakRef, Rounded]] = field(default_factory=dict)

    def pack(self, x: Tensor) -> Tensor | Rounded:
        kept = x.dim() < 2 or not x.is_floating_point() or not x.numel()
        if kept or x.untyped_storage().data_ptr() in self.held:
            return x
        storage = StorageWeakRef(x.untyped_storage())  # type: ignore[no-untyped-call]
        key = (storage.cdata, x.storage_offset(), x.shape, x.stride(), x._version)
        if key not in self.rounded:
            self.rounded[key] = (storage, round_tensor(x, self.bits))
        return self.rounded[key][1]

    def unpack(self, saved: Tensor | Rounded) -> Tensor:
        return restore_tensor(saved) if isinstance(saved, Rounded) else saved


def _addresses(tensors: Iterable[Tensor]) -> frozenset[int]:
    return frozenset(tensor.untyped_storage().data_ptr() for tensor in tensors)
