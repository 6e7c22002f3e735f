"""Plain PyTorch convolutional networks without weights, by name.

Owns the networks that the tests and benchmarks train: classifiers, U-Nets, super-resolution and
a generative pair, each faithful to its published architecture. Imports torch only. Comes in: a
name and options; goes out: an ``nn.Module`` and example inputs for it. Data, losses, training
and pretrained weights are left to others.

    model = models_zoo.build("resnet18", num_classes=10, small_input=True)
    inputs = models_zoo.example_input("resnet18", 4, size=32, small_input=True)
    logits = model(*inputs)
"""

from models_zoo.errors import InputShapeError, ModelOptionError, UnknownModelError, ZooError
from models_zoo.input_spec import InputSpec
from models_zoo.registry import (
    ModelEntry,
    Task,
    build,
    entry,
    example_input,
    input_spec,
    names,
)

__all__ = [
    "InputShapeError",
    "InputSpec",
    "ModelEntry",
    "ModelOptionError",
    "Task",
    "UnknownModelError",
    "ZooError",
    "build",
    "entry",
    "example_input",
    "input_spec",
    "names",
]
