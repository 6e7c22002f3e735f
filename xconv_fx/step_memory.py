"""*step memory*: the peak of a training step that is made of several graphs.

Forwards run 1..k and backwards k..1. While graph j runs, what graphs before it keep and return is
live, in its backward the parameter gradients of those after it, and parameters, buffers and batch
always. So, with "live" for kept and returned,

    peak = resident + max over j of
               live(<j) + max(forward_peak(j), backward_peak(j) + gradients(>j))

Every figure is an upper bound where it is not exact: returned values count to the end of the step,
and an input without a gradient counts once a graph.

The rule by which a budget is divided: graphs planned before hold what they hold, and a graph is
planned as though each graph still to come would keep as much as it does itself. So equal graphs get
equal parts, the last one all that is left, and a single graph all there is.

Comes in: joint graphs and predictions for single graphs. Goes out: :class:`GraphMemory` of each and
:class:`StepRoom`, which measures a plan for one of them. Holds no state.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

from torch import fx

from passes import JointGraph, MemoryEstimate
from passes.joint import tensor_nbytes, tensor_val


@dataclass(frozen=True)
class HeldTensor:
    """A parameter or buffer: which one, its bytes, and those of the gradient it will get."""

    identity: Hashable
    nbytes: int
    gradient_nbytes: int


@dataclass(frozen=True)
class GraphInputs:
    """What a graph reads that is live all the time: parameters and buffers, and the batch."""

    statics: tuple[HeldTensor, ...]
    batch_nbytes: int


@dataclass(frozen=True)
class GraphMemory:
    """What one graph adds to a step, in bytes.

    Attributes:
        statics: its parameters and buffers.
        batch_nbytes: its inputs that get no gradient.
        live_nbytes: what it keeps and returns.
        forward_peak_nbytes: the most that its forward has live, inputs left out.
        backward_peak_nbytes: the same of its backward, gradients included.
    """

    statics: tuple[HeldTensor, ...]
    batch_nbytes: int
    live_nbytes: int
    forward_peak_nbytes: int
    backward_peak_nbytes: int

    @classmethod
    def of(cls, inputs: GraphInputs, memory: MemoryEstimate) -> GraphMemory:
        """Put together what is known of the inputs and what is predicted."""
        return cls(
            inputs.statics,
            inputs.batch_nbytes,
            memory.live_after_forward_nbytes,
            memory.forward_peak_nbytes,
            memory.backward_peak_nbytes,
        )


def step_peak_nbytes(
    graphs: Sequence[GraphMemory],
    held: Iterable[HeldTensor] = (),
    *,
    gradients_to_come_nbytes: int = 0,
) -> int:
    """Return the peak of a step over several graphs by the formula above.

    Args:
        graphs: in the order of their forwards.
        held: parameters and buffers beside those that the graphs name.
        gradients_to_come_nbytes: of parameters that graphs after the last one will have.
    """
    resident = resident_nbytes(graphs, held)
    peak, live = resident, 0
    for index, graph in enumerate(graphs):
        gradients = gradients_to_come_nbytes + _gradients_nbytes(graphs[index + 1 :], graph)
        moment = max(graph.forward_peak_nbytes, graph.backward_peak_nbytes + gradients)
        peak = max(peak, resident + live + moment)
        live += graph.live_nbytes
    return peak


def resident_nbytes(graphs: Iterable[GraphMemory], held: Iterable[HeldTensor] = ()) -> int:
    """Bytes of parameters and buffers, each counted once, and of the batch."""
    graphs = tuple(graphs)
    statics = by_identity([*held, *(tensor for graph in graphs for tensor in graph.statics)])
    return sum(t.nbytes for t in statics.values()) + sum(g.batch_nbytes for g in graphs)


@dataclass(frozen=True)
class StepRoom:
    """The step around a graph that is being planned.

    Attributes:
        before: graphs whose forward runs before it.
        after: those known to come after it, from a former compilation.
        held: parameters and buffers of the whole model, as far as it is known.
        num_to_come: graphs after it that are assumed to keep as much as it does.
    """

    before: tuple[GraphMemory, ...] = ()
    after: tuple[GraphMemory, ...] = ()
    held: tuple[HeldTensor, ...] = ()
    num_to_come: int = 0

    @property
    def num_parts(self) -> int:
        """Into how many equal parts it divides what is left."""
        return self.num_to_come + 1

    def known_peak_nbytes(self, graph: GraphMemory) -> int:
        """Peak of the step as far as its graphs are known."""
        return step_peak_nbytes(
            (*self.before, graph, *self.after),
            self.held,
            gradients_to_come_nbytes=self._gradients_to_come(graph),
        )

    def assumed_peak_nbytes(self, graph: GraphMemory) -> int:
        """The same, and at least what it is if graphs to come keep as much as this one."""
        alone = step_peak_nbytes(
            (*self.before, graph),
            self.held,
            gradients_to_come_nbytes=self._gradients_to_come(graph, *self.after)
            + _gradients_nbytes(self.after, graph),
        )
        to_come = self.num_to_come * graph.live_nbytes
        return max(self.known_peak_nbytes(graph), alone + to_come)

    def _gradients_to_come(self, *others: GraphMemory) -> int:
        """Gradients of parameters that no known graph has, if unknown ones are to come."""
        if self.num_to_come <= len(self.after):
            return 0
        known = by_identity(t for g in (*self.before, *self.after, *others) for t in g.statics)
        return sum(t.gradient_nbytes for t in self.held if t.identity not in known)


def inputs_of(joint: JointGraph, identities: Sequence[int | None]) -> GraphInputs:
    """Read off a joint graph which parameters, buffers and batch it has.

    Args:
        joint: the joint graph.
        identities: of its inputs as Dynamo has them; None where unknown.
    """
    primals = joint.primals
    gradients = joint.outputs[joint.num_fwd_outputs :]
    trained = {p for p, g in zip(primals, gradients, strict=False) if g is not None}
    told = identities if len(identities) == len(primals) else (None,) * len(primals)
    identity = dict(zip(primals, told, strict=True))
    statics = [
        HeldTensor(
            object() if (known := identity[node]) is None else known,
            (nbytes := _node_nbytes(node)),
            nbytes if node in trained else 0,
        )
        for node in joint.static_inputs()
    ]
    return GraphInputs(tuple(statics), sum(map(_node_nbytes, joint.caller_held_inputs())))


def by_identity(tensors: Iterable[HeldTensor]) -> dict[Hashable, HeldTensor]:
    """Index tensors by what tells them apart, so that each counts once."""
    return {tensor.identity: tensor for tensor in tensors}


def _gradients_nbytes(graphs: Iterable[GraphMemory], running: GraphMemory) -> int:
    """Bytes of the gradients that graphs have made, but for those of the graph that runs."""
    own = by_identity(running.statics)
    made = by_identity(t for g in graphs for t in g.statics)
    return sum(t.gradient_nbytes for name, t in made.items() if name not in own)


def _node_nbytes(node: fx.Node) -> int:
    val = tensor_val(node)
    return 0 if val is None else tensor_nbytes(val) or 0
