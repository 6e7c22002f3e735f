"""*ledger*: which graphs make up a step, in the order of their forwards.

With graph breaks Dynamo compiles a model in several graphs, one after the other, and knows nothing
of a later one when an earlier one is planned. All graphs of one ``torch.compile`` call are a step.
A graph that is compiled again (new shapes, another mode) takes the place of its former version: the
same code, over the same parameters. The same code over other parameters (a block of the model that
has a break in it) is another graph; so are the parts that DDP divides one graph into. A graph for
inference counts with what it returns, until a version that trains takes its place.

How many graphs are still to come after one that is being planned is what the user says
(``memory_budget_graphs``), or what the step had when it was compiled before; where neither is
known, one if Dynamo stopped at a graph break. What cannot be seen here is a compiled graph that
runs several times in one step: it counts once.

Comes in: what Dynamo says of each graph, and its report. Goes out: the graphs of a step, and the
:class:`xconv_fx.step_memory.StepRoom` around one that is being planned. The state is in
:class:`Ledger`, of which the backend owns one and ``torch.compiler.reset()`` clears it. Memory is
predicted when a budget in bytes or a report asks for it.
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable
from dataclasses import dataclass, field

import torch
from torch import fx

from passes.joint import output_node, tensor_nbytes
from xconv_fx._torch import DynamoCall
from xconv_fx.audit import Report
from xconv_fx.step_memory import GraphInputs, GraphMemory, HeldTensor, StepRoom, by_identity


@dataclass(frozen=True)
class Place:
    """Where in a step a graph belongs.

    Attributes:
        frame: number of the code object; None outside of Dynamo.
        position: among the graphs that one trace was divided into.
        name: of the function that the graph was traced from.
        ends_in_break: whether Dynamo stopped at a graph break, so that more is to come.
        inputs: identity of each input of the graph, None where it is unknown.
    """

    frame: int | None = None
    position: int = 0
    name: str = "graph"
    ends_in_break: bool = False
    inputs: tuple[int | None, ...] = ()


@dataclass(frozen=True)
class StepGraph:
    """One graph of a step.

    Attributes:
        place: where it belongs.
        inputs: what it reads that is live all the time.
        report: its report; None if it was compiled for inference, without a backward.
        returned_nbytes: what a graph for inference returns.
        limit_nbytes: the budget of the step that it was planned for; None without one.
    """

    place: Place
    inputs: GraphInputs
    report: Report | None
    returned_nbytes: int = 0
    limit_nbytes: int | None = None

    @property
    def memory(self) -> GraphMemory:
        """What the graph adds to the step.

        Without a prediction (``report.memory`` is None, or there is no backward) what it keeps and
        returns stands for its peaks.
        """
        if self.report is not None and self.report.memory is not None:
            return GraphMemory.of(self.inputs, self.report.memory)
        kept = 0 if self.report is None else self.report.kept_nbytes
        nbytes = kept + self.returned_nbytes
        return GraphMemory(
            statics=self.inputs.statics,
            batch_nbytes=self.inputs.batch_nbytes,
            kept_nbytes=kept,
            returned_nbytes=self.returned_nbytes,
            forward_peak_nbytes=nbytes,
            backward_peak_nbytes=nbytes,
            followed_peak_nbytes=nbytes,
        )

    @property
    def is_predicted(self) -> bool:
        """Whether the peaks are predicted."""
        return self.report is not None and self.report.memory is not None

    def is_version_of(self, other: StepGraph) -> bool:
        """Whether one takes the place of the other: the same code over the same parameters."""
        ours, theirs = self.place, other.place
        if ours.frame is None or (ours.frame, ours.position) != (theirs.frame, theirs.position):
            return False
        own, others = ({t.identity for t in g.inputs.statics} for g in (self, other))
        return not own or not others or not own.isdisjoint(others)


class Step:
    """The graphs of one ``torch.compile`` call, in the order of their forwards.

    Mutable: graphs come one by one. Made and owned by :class:`Ledger`.
    """

    def __init__(self) -> None:
        """Start without a graph."""
        self._graphs: list[StepGraph] = []
        self._held: dict[Hashable, HeldTensor] = {}
        self._trace: str | None = None
        self._position = 0

    @property
    def graphs(self) -> tuple[StepGraph, ...]:
        """The graphs, each in its latest version."""
        return tuple(self._graphs)

    @property
    def held(self) -> tuple[HeldTensor, ...]:
        """Parameters and buffers of the modules seen; empty where inputs cannot be told apart."""
        told = all(
            isinstance(tensor.identity, int)
            for graph in self._graphs
            for tensor in graph.inputs.statics
        )
        return tuple(self._held.values()) if told else ()

    def place(self, call: DynamoCall) -> Place:
        """Return the place of a graph that is about to be compiled."""
        again = call.trace is not None and call.trace == self._trace
        self._position = self._position + 1 if again else 0
        self._trace = call.trace
        self._held.update(by_identity(t for module in call.modules for t in _held_by(module)))
        inputs = tuple(None if tensor is None else id(tensor) for tensor in call.inputs)
        return Place(call.frame, self._position, call.name, call.ends_in_break, inputs)

    def room(self, place: Place, inputs: GraphInputs, num_graphs: int | None) -> StepRoom:
        """Return the step around a graph that is being planned.

        Args:
            place: of the graph.
            inputs: of the graph.
            num_graphs: how many graphs the step has, by the user; None if not said.
        """
        index = self._index(StepGraph(place, inputs, None))
        before, after = self._graphs[:index], self._graphs[index + 1 :]
        told = 0 if num_graphs is None else num_graphs - index - 1
        expected = int(num_graphs is None and place.ends_in_break)
        num_to_come = max(told, expected, len(after))
        return StepRoom(
            tuple(graph.memory for graph in before),
            tuple(graph.memory for graph in after),
            self.held if all(isinstance(t.identity, int) for t in inputs.statics) else (),
            num_to_come,
            num_to_come > len(after),
        )

    def earlier(self, place: Place, inputs: GraphInputs) -> tuple[str, ...]:
        """Say what the graphs before one that is being planned hold."""
        graphs = self._graphs[: self._index(StepGraph(place, inputs, None))]
        return tuple(f"{g.place.name} {g.memory.live_nbytes} bytes" for g in graphs)

    def record(self, graph: StepGraph) -> None:
        """Enter a graph, in place of its former version if there is one."""
        index = self._index(graph)
        self._graphs[index : index + 1] = [graph]

    def record_inference(self, place: Place, call: DynamoCall, module: fx.GraphModule) -> None:
        """Enter a graph that was compiled without a backward, unless it has a version with one.

        Args:
            place: of the graph.
            call: what Dynamo says of it.
            module: Dynamo's graph.
        """
        tensors = [tensor for tensor in call.inputs if tensor is not None]
        statics = [t for t in tensors if isinstance(t, torch.nn.Parameter) or id(t) in self._held]
        batch = [t for t in tensors if not any(t is other for other in statics)]
        inputs = GraphInputs(
            tuple(HeldTensor(id(t), _nbytes(t), 0) for t in statics), sum(map(_nbytes, batch))
        )
        returned = {
            node: val
            for node in output_node(module.graph).all_input_nodes
            if node.op != "placeholder"
            and isinstance(val := node.meta.get("example_value"), torch.Tensor)
        }
        nbytes = sum(tensor_nbytes(val) or 0 for val in returned.values())
        graph = StepGraph(place, inputs, None, nbytes)
        if self._index(graph) == len(self._graphs):
            self.record(graph)

    def _index(self, graph: StepGraph) -> int:
        """Where the former version of a graph is, or the end."""
        found = (i for i, other in enumerate(self._graphs) if graph.is_version_of(other))
        return next(found, len(self._graphs))


@dataclass
class Ledger:
    """The steps of all compiled models. Mutable; the backend owns the only one.

    Attributes:
        last: the step that was compiled last, or None.
    """

    last: Step | None = None
    _steps: weakref.WeakKeyDictionary[object, Step] = field(
        default_factory=weakref.WeakKeyDictionary
    )

    def step_of(self, call: DynamoCall) -> Step:
        """Return the step that a graph belongs to: that of its ``torch.compile`` call."""
        if call.compiled is None:  # without Dynamo nothing says what belongs together
            self.last = Step()
            return self.last
        self.last = self._steps.setdefault(call.compiled, Step())
        return self.last

    def clear(self) -> None:
        """Forget everything."""
        self.last = None
        self._steps.clear()


def _held_by(module: torch.nn.Module) -> list[HeldTensor]:
    tensors = [*module.parameters(), *module.buffers()]
    known = [t for t in tensors if not torch.nn.parameter.is_lazy(t)]
    return [HeldTensor(id(t), _nbytes(t), _nbytes(t) * t.requires_grad) for t in known]


def _nbytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
