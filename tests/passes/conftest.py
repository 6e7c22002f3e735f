"""What the tests of the passes share: small joint graphs, their text, and toy codecs.

Nothing here knows a convolution or a sketch of ``xconv_fx``: the passes are shown to stand alone.
The text of a graph has one line a node, such as ``%y: f32[2,3] = aten.sin.default(%x)``, followed
by ``# save`` or ``# recompute`` where the node carries that tag.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from functorch.compile import aot_function, default_partition
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import (
    DimDynamic,
    ShapeEnv,
    StatelessSymbolicContext,
)
from torch.utils.checkpoint import CheckpointPolicy

from passes import JointGraph, LinearUse, Rules

aten = torch.ops.aten

_DTYPES = {
    torch.float16: "f16",
    torch.float32: "f32",
    torch.float64: "f64",
    torch.int64: "i64",
    torch.uint8: "u8",
    torch.bool: "b8",
}
# Where a factory op puts its result: no part of what the tests are about.
_NOT_SHOWN = ("device", "layout", "pin_memory")
_TAGS = {
    CheckpointPolicy.MUST_SAVE: "  # save",
    CheckpointPolicy.MUST_RECOMPUTE: "  # recompute",
}


def graph_text(graph: fx.Graph) -> str:
    """One line a node, in graph order; symbols are numbered as they appear."""
    text = "\n".join(_line(node) for node in graph.nodes)
    symbols = list(dict.fromkeys(re.findall(r"\bs\d+\b", text)))
    return re.sub(r"\bs\d+\b", lambda match: f"s{symbols.index(match.group())}", text)


def _line(node: fx.Node) -> str:
    if node.op == "output":
        return f"return {_value(node.args[0])}"
    name = f"%{node.name}{_type(node.meta.get('val'))}"
    if node.op == "placeholder":
        return name
    arguments = [_value(arg) for arg in node.args]
    arguments += [
        f"{key}={_value(arg)}" for key, arg in node.kwargs.items() if key not in _NOT_SHOWN
    ]
    target = node.target if isinstance(node.target, str) else str(node.target)
    if callable(node.target) and not isinstance(node.target, torch._ops.OpOverload):
        target = node.target.__name__
    call = f"{target}({', '.join(arguments)})" if node.op == "call_function" else f"self.{target}"
    return f"{name} = {call}{_TAGS.get(node.meta.get('recompute'), '')}"


def _value(argument: Any) -> str:
    if isinstance(argument, fx.Node):
        return f"%{argument.name}"
    if isinstance(argument, (list, tuple)):
        return f"[{', '.join(map(_value, argument))}]"
    if argument == sys.maxsize:
        return "max"
    return _DTYPES.get(argument, str(argument))


def _type(val: Any) -> str:
    if isinstance(val, torch.Tensor):
        return f": {_DTYPES[val.dtype]}[{','.join(map(str, val.shape))}]"
    if isinstance(val, (tuple, list)):
        return ": tuple"
    return "" if val is None else f": {type(val).__name__}"


@dataclasses.dataclass(frozen=True)
class Coin:
    """Keeps every other column, at double weight; the seed's lowest bit says which.

    Unbiased: over a uniform seed the mean of the decoded tensor is the tensor. The decode reads
    the seed, so that a seed drawn twice shows at once.
    """

    needs_seed: bool = True
    exact: bool = False
    limit: int = 2

    @property
    def name(self) -> str:
        return "coin"

    def encode(self, x, seed, dim_order):
        del dim_order
        return (torch.where(seed % 2 == 0, x[..., ::2], x[..., 1::2]),)

    def decode(self, parts, seed, size, dtype, dim_order):
        del dim_order
        (part,) = parts
        even = torch.where(seed % 2 == 0, part, torch.zeros_like(part))
        return (torch.stack([even, part - even], -1) * 2).reshape(list(size)).to(dtype)

    def nbytes(self, shape: Sequence[int], dtype: torch.dtype) -> int:
        return torch.Size(shape).numel() // 2 * dtype.itemsize

    def decoding_nbytes(self, shape: Sequence[int], dtype: torch.dtype) -> int:
        del shape, dtype
        return 0

    def noise(self, shape: Sequence[int]) -> float:
        del shape
        return 1.0

    def supports(self, shape: Sequence[int], dtype: torch.dtype) -> str | None:
        if not dtype.is_floating_point:
            return f"a coin holds floats, not {dtype}"
        if len(shape) < self.limit:
            return f"a coin needs {self.limit} dimensions and got {len(shape)}"
        return None


@dataclasses.dataclass(frozen=True)
class Half:
    """Keeps half precision: no seed, and exact where the values need no more bits."""

    needs_seed: bool = False
    exact: bool = False

    @property
    def name(self) -> str:
        return "half"

    def encode(self, x, seed, dim_order):
        assert seed is None
        del dim_order
        return (x.to(torch.float16),)

    def decode(self, parts, seed, size, dtype, dim_order):
        assert seed is None
        del size, dim_order
        return parts[0].to(dtype)

    def nbytes(self, shape: Sequence[int], dtype: torch.dtype) -> int:
        del dtype
        return torch.Size(shape).numel() * 2

    def decoding_nbytes(self, shape: Sequence[int], dtype: torch.dtype) -> int:
        del shape, dtype
        return 0

    def noise(self, shape: Sequence[int]) -> float:
        del shape
        return 1e-7

    def supports(self, shape: Sequence[int], dtype: torch.dtype) -> str | None:
        del shape
        return None if dtype == torch.float32 else f"half holds float32, not {dtype}"


@dataclasses.dataclass(frozen=True)
class Signed(Half):
    """Half precision times a sign drawn from the seed: decoded with the same seed, no error.

    All its ops are pointwise, so that to torch's partitioner it is cheap to encode once more.
    """

    needs_seed: bool = True

    @property
    def name(self) -> str:
        return "signed"

    def encode(self, x, seed, dim_order):
        del dim_order
        return ((x * (1 - 2 * (seed % 2))).to(torch.float16),)

    def decode(self, parts, seed, size, dtype, dim_order):
        del size, dim_order
        return parts[0].to(dtype) * (1 - 2 * (seed % 2))


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Keeps two booleans a byte, exactly."""

    needs_seed: bool = False
    exact: bool = True

    @property
    def name(self) -> str:
        return "pairs"

    def encode(self, x, seed, dim_order):
        assert seed is None
        del dim_order
        bits = x.reshape(-1, 2).to(torch.uint8)
        return (bits[:, 0] + 2 * bits[:, 1],)

    def decode(self, parts, seed, size, dtype, dim_order):
        assert seed is None
        del dim_order
        (packed,) = parts
        return torch.stack([packed & 1, packed >> 1], 1).reshape(list(size)).to(dtype)

    def nbytes(self, shape: Sequence[int], dtype: torch.dtype) -> int:
        del dtype
        return -(-torch.Size(shape).numel() // 2)

    def decoding_nbytes(self, shape: Sequence[int], dtype: torch.dtype) -> int:
        del shape, dtype
        return 0

    def noise(self, shape: Sequence[int]) -> float:
        del shape
        return 0.0

    def supports(self, shape: Sequence[int], dtype: torch.dtype) -> str | None:
        del shape
        return None if dtype == torch.bool else f"pairs hold bool, not {dtype}"


def expose_threshold_backward(grad: torch.Tensor, result: torch.Tensor, threshold: float):
    """Show that the backward of relu reads a boolean."""
    return torch.where(result <= threshold, 0.0, grad)


def pack_booleans(node: fx.Node) -> Pairs | None:
    """Two booleans fit in a byte; nothing else is packed."""
    return Pairs() if node.meta["val"].dtype == torch.bool else None


def make_rules(*codecs: Any, **changes: Any) -> Rules:
    """Rules of a toy world: a product's second factor is linear, relu's backward reads a mask."""
    return dataclasses.replace(
        Rules(
            linear={aten.mul.Tensor: (LinearUse(arg=1),)},
            exposures={aten.threshold_backward.default: expose_threshold_backward},
            codecs=codecs,
            packing=pack_booleans,
        ),
        **changes,
    )


def capture(
    function: Callable[..., Any], *inputs: torch.Tensor, static: Sequence[int] = ()
) -> JointGraph:
    """Trace a function's joint graph as AOTAutograd hands it to a partitioner.

    Args:
        function: of tensors, to a tensor or a tuple of them.
        inputs: those that require a gradient get one.
        static: indices of the inputs that play the part of parameters.
    """
    recorded: list[JointGraph] = []

    def record(module, joint_inputs, *, num_fwd_outputs, **kwargs):
        recorded.append(JointGraph(module, num_fwd_outputs, tuple(static)).copy())
        return default_partition(module, joint_inputs, num_fwd_outputs=num_fwd_outputs, **kwargs)

    def run_as_is(module, example_inputs):
        del example_inputs
        return module

    aot_function(function, fw_compiler=run_as_is, bw_compiler=run_as_is, partition_fn=record)(
        *inputs
    )
    (joint,) = recorded
    return joint


@contextlib.contextmanager
def untouched(*modules: fx.GraphModule) -> Iterator[None]:
    """Check that the block leaves the modules as they are: nodes, text, metadata, attributes."""
    before = [_everything(module) for module in modules]
    yield
    assert [_everything(module) for module in modules] == before


def _everything(module: fx.GraphModule) -> tuple[Any, ...]:
    nodes = list(module.graph.nodes)
    metas = [{key: id(value) for key, value in node.meta.items()} for node in nodes]
    attributes = sorted(vars(module)["_buffers"])
    return nodes, graph_text(module.graph), metas, attributes, module.code


class Builder:
    """Builds a joint graph by hand, node by node, on fake tensors."""

    def __init__(self, *, dynamic: bool = False) -> None:
        self.shape_env = ShapeEnv() if dynamic else None
        self.mode = FakeTensorMode(shape_env=self.shape_env)
        self.graph = fx.Graph()
        self._sizes: dict[str, torch.SymInt] = {}

    def input(self, name: str, *size: Any, dtype: torch.dtype = torch.float32) -> fx.Node:
        """Add a placeholder; a name with ``tangents`` in it makes it a gradient.

        A size given as a name is symbolic with the hint 8; ``"?"`` is unbacked.
        """
        node = self.graph.placeholder(name)
        sizes = [self._size(s) for s in size]
        with self.mode:
            node.meta["val"] = torch.empty(sizes, dtype=dtype)
        return node

    def _size(self, size: int | str) -> int | torch.SymInt:
        if isinstance(size, int):
            return size
        if size == "?":
            return self.shape_env.create_unbacked_symint()
        if size not in self._sizes:
            context = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC])
            example = self.mode.from_tensor(torch.empty(8), symbolic_context=context)
            self._sizes[size] = example.shape[0]
        return self._sizes[size]

    def call(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """Add a call, with the value that it has on fake tensors."""
        name = str(getattr(target, "overloadpacket", target.__name__)).rpartition(".")[2]
        node = self.graph.create_node("call_function", target, args, kwargs, name=name)
        values = fx.node.map_arg((args, kwargs), lambda n: n.meta["val"])
        with self.mode:
            node.meta["val"] = target(*values[0], **values[1])
        return node

    def joint(
        self, fwd_outputs: Sequence[Any], gradients: Sequence[Any], static: Sequence[int] = ()
    ) -> JointGraph:
        """Close the graph."""
        self.graph.output([*fwd_outputs, *gradients])
        module = fx.GraphModule({}, self.graph)
        return JointGraph(module, len(fwd_outputs), tuple(static))


def laboratory() -> SimpleNamespace:
    """Everything above, in one place to take it from."""
    return SimpleNamespace(
        Builder=Builder,
        Coin=Coin,
        Half=Half,
        Pairs=Pairs,
        Signed=Signed,
        capture=capture,
        rules=make_rules,
        text=graph_text,
        untouched=untouched,
    )


@pytest.fixture(scope="session")
def toy() -> SimpleNamespace:
    """The toy world: graphs, codecs and rules."""
    return laboratory()
