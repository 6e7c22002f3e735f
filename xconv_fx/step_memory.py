"""*step memory*: the peak of a training step that is made of several graphs.

Forwards run 1..k and backwards k..1. Parameters, buffers and the batch are resident. While the
forward of graph j runs, what graphs before it keep and return is live (the frames of the model hold
what was returned). While its backward runs, what those before it keep is live, what graphs up to it
keep of others' results (their inputs), and the parameter gradients of those after it:

    peak = resident + max over j of
        forward:   kept(<j) + returned(<j) + forward_peak(j)
        backward:  kept(<j) + kept_inputs(<=j) + backward_peak(j) + gradients(>j)

What a graph returns that is not the last is taken for read by later graphs alone, so its own
backward has neither that nor its tangents when they were read. An input without a gradient counts
as batch data in each graph that reads it. Checked on torch 2.13 to some bytes (``aot_eager``).

The rule by which a budget is divided: graphs planned before hold what they hold, and a graph is
planned as though each graph still to come would keep as much as it does itself. So equal graphs get
equal parts, the last one all that is left, and a single graph all there is.

Comes in: joint graphs and predictions for single graphs. Goes out: :class:`GraphMemory` of each and
:class:`StepRoom`, which measures a plan for one of them. Holds no state.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace

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
    """What a graph reads that is live all the time: parameters and buffers, and the batch.

    Attributes:
        statics: the parameters and buffers.
        batch_nbytes: bytes of the batch.
        resident: names of all of these inputs in the graph.
    """

    statics: tuple[HeldTensor, ...]
    batch_nbytes: int
    resident: frozenset[str] = frozenset()


@dataclass(frozen=True)
class GraphMemory:
    """What one graph adds to a step, in bytes.

    Attributes:
        statics: its parameters and buffers.
        batch_nbytes: its inputs that get no gradient.
        kept_nbytes: what it makes and keeps for its backward.
        returned_nbytes: what it returns and does not keep.
        kept_inputs_nbytes: what it keeps of its inputs, made by graphs before it.
        forward_peak_nbytes: the most that its forward has live, inputs left out.
        backward_peak_nbytes: the same of its backward, gradients included.
        followed_peak_nbytes: the same if graphs after it read what it returns.
    """

    statics: tuple[HeldTensor, ...] = ()
    batch_nbytes: int = 0
    kept_nbytes: int = 0
    returned_nbytes: int = 0
    kept_inputs_nbytes: int = 0
    forward_peak_nbytes: int = 0
    backward_peak_nbytes: int = 0
    followed_peak_nbytes: int = 0

    @property
    def live_nbytes(self) -> int:
        """What it keeps and returns: live between its forward and its backward."""
        return self.kept_nbytes + self.returned_nbytes

    @classmethod
    def of(cls, inputs: GraphInputs, memory: MemoryEstimate) -> GraphMemory:
        """Put together what is known of the inputs and what is predicted."""
        return cls(
            statics=inputs.statics,
            batch_nbytes=inputs.batch_nbytes,
            kept_nbytes=memory.kept_nbytes,
            returned_nbytes=memory.live_after_forward_nbytes - memory.kept_nbytes,
            kept_inputs_nbytes=sum(
                value.nbytes for value in memory.kept_inputs if value.name not in inputs.resident
            ),
            forward_peak_nbytes=memory.forward_peak_nbytes,
            backward_peak_nbytes=memory.backward_peak_nbytes,
            followed_peak_nbytes=memory.followed_peak_nbytes,
        )


def step_peak_nbytes(
    graphs: Sequence[GraphMemory],
    held: Iterable[HeldTensor] = (),
    *,
    is_followed: bool = False,
    gradients_to_come_nbytes: int = 0,
) -> int:
    """Return the peak of a step over several graphs by the formula above.

    Args:
        graphs: in the order of their forwards.
        held: parameters and buffers beside those that the graphs name.
        is_followed: whether more graphs come after the last one.
        gradients_to_come_nbytes: of parameters that those will have.
    """
    peak = kept = returned = kept_inputs = 0
    for index, graph in enumerate(graphs):
        later = graphs[index + 1 :]
        kept_inputs += graph.kept_inputs_nbytes
        followed = is_followed or bool(later)
        backward = graph.followed_peak_nbytes if followed else graph.backward_peak_nbytes
        gradients = gradients_to_come_nbytes + _gradients_nbytes(later, graph)
        peak = max(
            peak,
            kept + returned + graph.forward_peak_nbytes,
            kept + kept_inputs + backward + gradients,
        )
        kept += graph.kept_nbytes
        returned += graph.returned_nbytes
    return resident_nbytes(graphs, held) + peak


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
        is_followed: whether more graphs come after all that are known.
    """

    before: tuple[GraphMemory, ...] = ()
    after: tuple[GraphMemory, ...] = ()
    held: tuple[HeldTensor, ...] = ()
    num_to_come: int = 0
    is_followed: bool = False

    @property
    def num_parts(self) -> int:
        """Into how many equal parts it divides what is left."""
        return self.num_to_come + 1

    @property
    def is_empty(self) -> bool:
        """Whether the graph is the whole step, as far as is known."""
        return not self.before and self.num_parts == 1

    def known_peak_nbytes(self, graph: GraphMemory) -> int:
        """Peak of the step as far as its graphs are known."""
        return step_peak_nbytes(
            (*self.before, graph, *self.after),
            self.held,
            is_followed=self.is_followed,
            gradients_to_come_nbytes=self._gradients_to_come(graph),
        )

    def assumed_peak_nbytes(self, graph: GraphMemory) -> int:
        """The same, and at least what it is if graphs to come keep as much as this one."""
        known = self.known_peak_nbytes(graph)
        if not self.num_to_come:
            return known
        like_it = replace(graph, batch_nbytes=0)
        assumed = step_peak_nbytes(
            (*self.before, graph, *[like_it] * self.num_to_come),
            self.held,
            is_followed=True,
            gradients_to_come_nbytes=self._gradients_to_come(graph)
            + _gradients_nbytes(self.after, graph),
        )
        return max(known, assumed)

    def _gradients_to_come(self, graph: GraphMemory) -> int:
        """Gradients of parameters that no known graph has, if unknown ones are to come."""
        if not self.is_followed:
            return 0
        known = by_identity(t for g in (*self.before, graph, *self.after) for t in g.statics)
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
    batch_nbytes = sum(map(_node_nbytes, joint.caller_held_inputs()))
    return GraphInputs(tuple(statics), batch_nbytes, joint.held_inputs())


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
