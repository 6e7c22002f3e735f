"""*measure*: what sketching each forward value does to the gradients of one real step.

Comes in: an exposed joint graph with its costs, and the values of a step. Goes out: a
:class:`GraphMeasurement`. Changes neither the graph nor the numbers of the step.

Two things are measured and multiplied. Per use u of stand-ins (a weight gradient, a norm's input
gradient), once: its *gain*, the harm (see :mod:`passes.measured`) that a unit of squared error in
its result does to all gradients, by running what follows from it again with a sketch's own error.
Per value, codec and draw: the squared error of the result of each use that the sketch serves,
itself or through what is derived from it, by running that use alone:

    harm(v, c) = sum over uses u of  gain(u) * E ||u(sketch) - u(v)||^2

So a norm costs one partial backward and not one a codec. The mini-batch noise of a gradient comes
from the same batch: the backward is linear in the tangents, so the tangents of every G-th sample
give a group's share g_i of it, and a sum of G independent shares has the squared deviation
``G / (G - 1) * sum ||g_i - mean||^2``. Groups are taken within the batch's own statistics.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import fx

from passes.derive import Derivation
from passes.estimate import CodecCost, CostTable, ValueCost
from passes.fingerprint import graph_lines
from passes.joint import JointGraph, is_tangent, memory_order
from passes.measured import (
    CodecMeasurement,
    GradientMeasurement,
    GraphMeasurement,
    ValueMeasurement,
)
from passes.observe import Replay, values_read
from passes.provenance import module_of
from passes.rules import Codec, Rules
from passes.sketch import draw_seed

# A gradient whose elements are some 1e-5 of the others' is zero but for rounding (of a bias in
# front of a norm): noise beside it means nothing.
_VANISHING = 1e-5


@dataclass(frozen=True)
class MeasureRequest:
    """What to measure, and how closely.

    Attributes:
        joint: an exposed joint graph of static sizes.
        costs: its costs.
        rules: that they were made with.
        num_draws: sketches drawn for each value and codec.
        num_groups: groups that the batch is split into for its mini-batch noise.
        boundary_weight: harm of a relative squared error of 1 in a gradient that leaves the graph
            for an earlier one, where it reaches every parameter.
    """

    joint: JointGraph
    costs: CostTable
    rules: Rules
    num_draws: int
    num_groups: int
    boundary_weight: float

    def kept(self) -> tuple[str, ...]:
        """Name the forward values that the measurement reads, in graph order.

        Raises:
            ValueError: as :func:`passes.observe.values_read`.
        """
        wanted = set(values_read(self.joint))
        for value in self.candidates():
            wanted.add(value.node)
            wanted.update(*(_made_of(self.nodes[n], d) for n, d in self.chain(value).items()))
        return tuple(n.name for n in self.joint.graph.nodes if n.name in wanted)

    def candidates(self) -> list[ValueCost]:
        """The values whose noise plays a part in a plan."""
        return list(self.costs.priced().values())

    def chain(self, source: ValueCost) -> dict[str, Derivation]:
        """What a plan may derive from a sketch of a value, in graph order."""
        reached = {source.node}
        found = {}
        for value in self.costs.values:
            derivation = value.derivation
            if derivation is None or value.raw_users or not reached & {*derivation.linear}:
                continue
            reached.add(value.node)
            found[value.node] = derivation
        return found

    @functools.cached_property
    def nodes(self) -> dict[str, fx.Node]:
        """The graph's nodes by name, in graph order."""
        return {node.name: node for node in self.joint.graph.nodes}


def measure_graph(
    request: MeasureRequest, given: Mapping[str, torch.Tensor]
) -> tuple[GraphMeasurement, list[torch.Tensor | None]]:
    """Run a step's backward exactly, and parts of it again with sketches.

    Args:
        request: what to measure.
        given: the values that ``request.kept()`` names, and the tangents, by name.

    Returns:
        The measurement, and the exact gradients in the order of the graph's outputs.
    """
    replay = Replay.of(request.joint, given)
    gradients, num_groups = _measure_gradients(request, replay)
    weights = {
        output: gradient.weight
        for output, gradient in zip(_gradient_nodes(request.joint), gradients, strict=True)
        if output is not None and gradient is not None
    }
    bench = _Bench(request, replay, weights)
    values = tuple(bench.measure(value) for value in request.candidates())
    measurement = GraphMeasurement(
        lines=graph_lines(request.joint),
        num_groups=num_groups,
        values=values,
        gradients=tuple(gradient for gradient in gradients if gradient is not None),
    )
    return measurement, replay.gradients()


@dataclass(frozen=True)
class _Bench:
    """Sketches values of one step, one after the other; learns each use's gain on the way."""

    request: MeasureRequest
    replay: Replay
    weights: Mapping[fx.Node, float]
    gains: dict[fx.Node, float] = field(default_factory=dict)
    paths: dict[fx.Node, bool] = field(default_factory=dict)

    def measure(self, value: ValueCost) -> ValueMeasurement:
        nodes = self.request.nodes
        node = nodes[value.node]
        exact = self.replay.values[node]
        chain = {nodes[name]: d for name, d in self.request.chain(value).items()}
        served = {value.node, *(n.name for n in chain)}
        users = [
            nodes[user]
            for row in self.request.costs.values
            if row.node in served
            for user in row.linear_users
        ]
        users = list(dict.fromkeys(users))
        # The coarsest first: its error is the one that is far above rounding.
        found = [self._measure_codec(cost, node, chain, users) for cost in reversed(value.codecs)]
        zeros, range_to_rms, kurtosis = activation_statistics(exact)
        return ValueMeasurement(
            position=list(nodes).index(value.node),
            node=value.node,
            module=module_of(node),
            nbytes=value.nbytes,
            is_read=bool(value.linear_users),
            on_path=any(self.paths.get(user, False) for user in users),
            zeros=zeros,
            range_to_rms=range_to_rms,
            kurtosis=kurtosis,
            codecs=tuple(reversed(found)),
        )

    def _measure_codec(
        self,
        cost: CodecCost,
        node: fx.Node,
        chain: Mapping[fx.Node, Derivation],
        users: Sequence[fx.Node],
    ) -> CodecMeasurement:
        exact = self.replay.values[node]
        energy = squared_norm(exact)
        noise = harm = 0.0
        for _ in range(self.request.num_draws):
            sketched = _sketch_once(cost.codec, node, exact, self.request.rules)
            noise += squared_norm(sketched - exact) / energy if energy > 0.0 else 0.0
            stand_ins = self._derive({node: sketched}, chain)
            for user in users:
                result = self.replay.call(user, stand_ins)
                error = squared_norm(result - self.replay.values[user])
                if error > 0.0:
                    harm += error * self._gain(user, result, error)
        draws = self.request.num_draws
        return CodecMeasurement(
            cost.codec, noise / draws, harm / draws, cost.noise, cost.sensitivity
        )

    def _derive(
        self, stand_ins: dict[fx.Node, torch.Tensor], chain: Mapping[fx.Node, Derivation]
    ) -> dict[fx.Node, torch.Tensor]:
        """Add what is derived from a stand-in, as :mod:`passes.sketch` would form it."""
        for node, derivation in chain.items():
            if derivation.rebuild is None:
                stand_ins[node] = self.replay.call(node, stand_ins)
                continue
            names = (*derivation.exact, *derivation.linear)
            inputs = [self.request.nodes[name] for name in names]
            read = [stand_ins[n] if n in stand_ins else self.replay.values[n] for n in inputs]
            stand_ins[node] = derivation.rebuild(*read)
        return stand_ins

    def _gain(self, user: fx.Node, result: torch.Tensor, error: float) -> float:
        """Harm of a unit of squared error in the result of a use."""
        if user not in self.gains:
            following = self.replay.after({user: result})
            hit = [output for output in self.weights if output in following]
            self.gains[user] = sum(
                self.weights[output]
                * squared_norm(following[output] - self.replay.values[output])
                / error
                for output in hit
            )
            self.paths[user] = len(hit) > 1
        return self.gains[user]


def _sketch_once(codec: Codec, node: fx.Node, exact: torch.Tensor, rules: Rules) -> torch.Tensor:
    order = memory_order(node.meta["val"], rules.channels_last)
    seed = draw_seed(exact.device, rules.expand_seeds) if codec.needs_seed else None
    parts = codec.encode(exact, seed, order)
    return codec.decode(parts, seed, list(exact.shape), exact.dtype, order)


def _made_of(node: fx.Node, derivation: Derivation) -> list[str]:
    if derivation.rebuild is None:
        return [source.name for source in node.all_input_nodes]
    return [*derivation.exact, *derivation.linear]


def _measure_gradients(
    request: MeasureRequest, replay: Replay
) -> tuple[list[GradientMeasurement | None], int]:
    nodes = _gradient_nodes(request.joint)
    outputs = [node for node in dict.fromkeys(nodes) if node is not None]
    deviations, num_groups = _deviations(replay, outputs, request.num_groups)
    energies = {node: squared_norm(replay.values[node]) for node in outputs}
    numels = {node: replay.values[node].numel() for node in outputs}
    overall = sum(energies.values()) / max(sum(numels.values()), 1)
    static = {node.name for node in request.joint.static_inputs()}
    found: list[GradientMeasurement | None] = []
    for i, (node, primal) in enumerate(zip(nodes, request.joint.primals, strict=True)):
        if node is None:
            found.append(None)
            continue
        energy = energies[node]
        deviation = energy if deviations is None else deviations[node]
        vanishes = energy <= _VANISHING**2 * overall * numels[node] or deviation <= 0.0
        if vanishes:
            weight = 0.0
        elif primal.name in static:
            weight = 1.0 / deviation
        else:
            weight = request.boundary_weight / energy
        module = module_of(next(iter(primal.users), node))
        found.append(GradientMeasurement(i, module, energy, deviation, 0.0 if vanishes else weight))
    return found, num_groups


def _deviations(
    replay: Replay, outputs: Sequence[fx.Node], num_groups: int
) -> tuple[dict[fx.Node, float] | None, int]:
    """Return the squared deviation of each gradient between mini-batches, and the groups used."""
    tangents = [n for n in replay.joint.graph.find_nodes(op="placeholder") if is_tangent(n)]
    given = {node: replay.values[node] for node in tangents}
    sizes = {t.shape[0] if t.dim() else 1 for t in given.values()}
    num_groups = min(num_groups, *sizes) if len(sizes) == 1 else 1
    if num_groups < 2:
        return None, 1
    sums = {node: torch.zeros_like(replay.values[node], dtype=torch.float64) for node in outputs}
    squares = dict.fromkeys(outputs, 0.0)
    for i in range(num_groups):
        found = replay.after({node: _every(t, i, num_groups) for node, t in given.items()})
        for node in outputs:
            share = found[node] if node in found else torch.zeros_like(replay.values[node])
            sums[node] += share
            squares[node] += squared_norm(share)
    deviations = {
        node: (squares[node] - squared_norm(sums[node]) / num_groups)
        * num_groups
        / (num_groups - 1)
        for node in outputs
    }
    return deviations, num_groups


def _every(tangent: torch.Tensor, start: int, step: int) -> torch.Tensor:
    """Keep every ``step``-th sample of a tangent ``(N, *)``, and zero the others."""
    kept = torch.zeros_like(tangent)
    kept[start::step] = tangent[start::step]
    return kept


def _gradient_nodes(joint: JointGraph) -> list[fx.Node | None]:
    outputs = joint.outputs[joint.num_fwd_outputs :]
    return [output if isinstance(output, fx.Node) else None for output in outputs]


def squared_norm(x: torch.Tensor) -> float:
    """Return the sum of squares, added up in float64."""
    return float(x.detach().double().square().sum())


def activation_statistics(x: torch.Tensor) -> tuple[float, float, float]:
    """Return the share of zeros, the range over the rms, and the kurtosis of all elements.

    Args:
        x: any shape, at least one element.
    """
    wide = x.detach().double()
    rms = float(wide.square().mean().sqrt())
    centred = wide - wide.mean()
    variance = float(centred.square().mean())
    return (
        float((wide == 0).double().mean()),
        float(wide.max() - wide.min()) / rms if rms > 0.0 else 0.0,
        float(centred.pow(4).mean()) / variance**2 if variance > 0.0 else 0.0,
    )
