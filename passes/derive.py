"""*derive*: which forward values follow linearly from others, so that one sketch serves several.

Comes in: an exposed joint graph and the linear uses in its backward. Goes out: for each forward
value a :class:`Derivation`, the inputs in which it is linear (affine) and those that must be exact.
Then ``E[x_hat] = x`` passes through it: an unbiased stand-in for the input of a normalisation
gives one for its normalised value, and, with the exact mask of a relu, for the input of the next
convolution. Concatenations are served by the sketches of their parts. Changes no graph.

What must not happen is that one sketch meets itself in a product: where the result of one use
reaches another use, they must read different sketches. So a value is derived only as long as no
use of a common source feeds another (:func:`find_derivations`); it is a source of its own then.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import fx

from passes.joint import JointGraph, tensor_val

aten = torch.ops.aten

# A value with linear uses of its own that is made from another such value, and that from a third:
# rebuilt in the backward they would all be alive at once (a residual stream is such a chain).
_MAX_CHAIN = 2


@dataclass(frozen=True)
class Derivation:
    """How a value follows from others.

    Attributes:
        linear: names of the inputs that unbiased stand-ins may replace; the value is affine in
            all of them together.
        exact: names of the other inputs.
        rebuild: makes the value from ``(*exact, *linear)``; None where its own call does.
    """

    linear: tuple[str, ...]
    exact: tuple[str, ...]
    rebuild: Callable[..., torch.Tensor] | None = None


@dataclass(frozen=True)
class _Form:
    linear: tuple[fx.Node, ...]
    exact: tuple[fx.Node, ...]
    rebuild: Callable[..., torch.Tensor] | None = None

    def named(self) -> Derivation:
        linear, exact = (tuple(n.name for n in nodes) for nodes in (self.linear, self.exact))
        return Derivation(linear, exact, self.rebuild)


def find_derivations(
    joint: JointGraph,
    uses: Mapping[fx.Node, tuple[fx.Node, ...]],
    fixed: frozenset[fx.Node],
    feeds: FeedsRelation,
) -> dict[fx.Node, Derivation]:
    """Return the derivations that keep every use unbiased.

    Args:
        joint: an exposed joint graph.
        uses: for each forward value the backward nodes in which it enters linearly.
        fixed: values that are always at hand exactly (parameters, the batch).
        feeds: which uses feed which.

    Returns:
        Derivations of forward values, in graph order; none for values that nothing linear needs.
    """
    backward = joint.backward_nodes()
    forms = {
        node: form
        for node in joint.graph.nodes
        if node not in backward and (form := _linear_form(node, backward, fixed)) is not None
    }
    wanted = _wanted(forms, uses)
    search = _Search(forms, uses)
    for node in joint.graph.nodes:
        if node in wanted and not search.derive(node, feeds):
            search.make_source(node)
    return {node: form.named() for node, form in search.found.items()}


@dataclass(frozen=True)
class _Search:
    """Values taken in graph order: derived where that is safe, sources of their own elsewhere."""

    forms: Mapping[fx.Node, _Form]
    uses: Mapping[fx.Node, tuple[fx.Node, ...]]
    found: dict[fx.Node, _Form] = field(default_factory=dict)
    sources: dict[fx.Node, frozenset[fx.Node]] = field(default_factory=dict)
    chain: dict[fx.Node, int] = field(default_factory=dict)
    served: dict[fx.Node, list[fx.Node]] = field(default_factory=dict)

    def derive(self, node: fx.Node, feeds: FeedsRelation) -> bool:
        form = self.forms.get(node)
        if form is None:
            return False
        own = self.uses.get(node, ())
        reached = frozenset(s for n in form.linear for s in self.sources[n])
        length = max(self.chain[n] for n in form.linear) + bool(own)
        meets = any(feeds.any_pair([*self.served[source], *own]) for source in reached)
        if length > _MAX_CHAIN or meets:
            return False
        self.found[node], self.sources[node], self.chain[node] = form, reached, length
        for source in reached:
            self.served[source].extend(own)
        return True

    def make_source(self, node: fx.Node) -> None:
        self.sources[node], self.chain[node] = frozenset({node}), 0
        self.served[node] = list(self.uses.get(node, ()))


def uses_served(
    derivations: Mapping[fx.Node, Derivation], uses: Mapping[fx.Node, tuple[fx.Node, ...]]
) -> dict[str, tuple[fx.Node, ...]]:
    """Return, by name, the linear uses that a stand-in for each value may come to serve.

    Args:
        derivations: from :func:`find_derivations`.
        uses: as given to it.

    Returns:
        Each value's own uses, then those of the values derived from it.
    """
    served: dict[str, dict[fx.Node, None]] = {
        node.name: dict.fromkeys(own) for node, own in uses.items()
    }
    for node, derivation in reversed(list(derivations.items())):
        for source in derivation.linear:
            served.setdefault(source, {}).update(served.get(node.name, {}))
    return {name: tuple(users) for name, users in served.items()}


def _linear_form(
    node: fx.Node, backward: Mapping[fx.Node, None], fixed: frozenset[fx.Node]
) -> _Form | None:
    """Return the inputs in which one call is affine, or None where it is in none.

    Only cheap calls have a form; a product of two activations (a gate) has none. A relu is linear
    given its mask, which has to be in the graph already (its backward reads it); so is a clamp.
    """
    val = tensor_val(node)
    if val is None or node.op != "call_function" or not val.is_floating_point():
        return None
    target, first = node.target, node.args[0] if node.args else None
    if target is aten.relu.default:
        return _relu_form(node, backward)
    if target is aten.clamp_max.default:
        return _clamp_form(node, backward)
    inputs = [n for n in node.all_input_nodes if tensor_val(n) is not None]
    floating = [n for n in inputs if n not in fixed and n.meta["val"].is_floating_point()]
    if target in _MOVES:
        wide = [n for n in floating if n is first]
    elif target is aten.cat.default:
        wide = floating
    else:
        wide = [n for n in floating if sizes_of(n) == sizes_of(node)]
    one = wide == [first] or (len(wide) == 1 and target is not aten.div.Tensor)
    affine = (
        target in _MOVES
        or target in _AFFINE_IN_ALL
        or (target in _PRODUCTS and one and node.args[0] is not node.args[1])
        or (target is aten.where.self and first not in wide)
    )
    if not affine or not wide:
        return None
    return _Form(tuple(wide), tuple(n for n in inputs if n not in wide))


def sizes_of(node: fx.Node) -> list[str]:
    """Return a tensor's sizes as text, so that symbolic ones compare without a guard."""
    return [str(size) for size in node.meta["val"].shape]


_PRODUCTS = frozenset({aten.mul.Tensor, aten.div.Tensor})
_AFFINE_IN_ALL = frozenset({aten.add.Tensor, aten.sub.Tensor, aten.cat.default, aten.neg.default})
_MOVES = frozenset(
    {
        aten.view.default,
        aten.reshape.default,
        aten._unsafe_view.default,
        aten.permute.default,
        aten.transpose.int,
        aten.expand.default,
        aten.squeeze.dims,
        aten.squeeze.dim,
        aten.unsqueeze.default,
        aten.slice.Tensor,
        aten.alias.default,
        aten.clone.default,
        aten.constant_pad_nd.default,
        aten._unsafe_index.Tensor,
        aten.index.Tensor,
        aten._to_copy.default,
        torch.ops.prims.convert_element_type.default,
    }
)


def _relu_form(node: fx.Node, backward: Mapping[fx.Node, None]) -> _Form | None:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    masks = (_comparison(alias, aten.le.Scalar, 0, backward) for alias in _aliases(node))
    mask = next((found for found in masks if found is not None), None)
    return None if mask is None else _Form((source,), (mask,), _zero_where)


def _clamp_form(node: fx.Node, backward: Mapping[fx.Node, None]) -> _Form | None:
    """A clamp to a range (relu6, hardtanh) is linear given which elements are at which bound."""
    inner, high = node.args[:2]
    if not isinstance(inner, fx.Node) or inner.target is not aten.clamp_min.default:
        return None
    source, low = inner.args[:2]
    assert isinstance(source, fx.Node)
    if not isinstance(low, (int, float)) or not isinstance(high, (int, float)):
        return None
    below = _comparison(source, aten.le.Scalar, low, backward)
    above = _comparison(source, aten.ge.Scalar, high, backward)
    if below is None or above is None:
        return None
    return _Form((source,), (below, above), functools.partial(_bounded, low, high))


def _comparison(
    node: fx.Node, target: object, bound: object, backward: Mapping[fx.Node, None]
) -> fx.Node | None:
    matching = (u for u in node.users if u.target is target and u.args[1] == bound)
    return next((user for user in matching if user not in backward), None)


def _bounded(
    low: float, high: float, below: torch.Tensor, above: torch.Tensor, x: torch.Tensor
) -> torch.Tensor:
    return torch.where(below, low, torch.where(above, high, x))


def _zero_where(mask: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return torch.where(mask, 0.0, x)


def _aliases(node: fx.Node) -> list[fx.Node]:
    found = [node]
    for alias in found:
        found.extend(user for user in alias.users if user.target is aten.alias.default)
    return found


def _wanted(
    forms: Mapping[fx.Node, _Form], uses: Mapping[fx.Node, tuple[fx.Node, ...]]
) -> set[fx.Node]:
    """Values with a linear use, and all that they may be derived from."""
    found = set(uses)
    queue = list(uses)
    while queue:
        form = forms.get(queue.pop())
        new = [n for n in form.linear if n not in found] if form is not None else []
        found.update(new)
        queue.extend(new)
    return found


class FeedsRelation:
    """Answers whether the result of one linear use reaches another, by bit sets.

    Then one sketch in both would meet itself in a product, whose expectation is not the product
    of the expectations.

    Args:
        joint: an exposed joint graph.
        uses: for each forward value the backward nodes in which it enters linearly.
    """

    def __init__(self, joint: JointGraph, uses: Mapping[fx.Node, tuple[fx.Node, ...]]) -> None:
        users = dict.fromkeys(user for own in uses.values() for user in own)
        self._bit = {user: 1 << i for i, user in enumerate(users)}
        self._before: dict[fx.Node, int] = {}
        reaching: dict[fx.Node, int] = {}
        for node in joint.backward_nodes():
            before = 0
            for source in node.all_input_nodes:
                before |= reaching.get(source, 0)
            self._before[node] = before
            reaching[node] = before | self._bit.get(node, 0)

    def any_pair(self, users: Sequence[fx.Node]) -> bool:
        """Whether any of these uses feeds another of them."""
        together = 0
        for user in users:
            together |= self._bit[user]
        return any(self._before[user] & together for user in users)
