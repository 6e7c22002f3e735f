import operator

import pytest
import torch

from passes.op_traits import is_view, recompute_ban

aten = torch.ops.aten


@pytest.fixture
def library():
    """A namespace of the test's own, gone when it ends."""
    library = torch.library.Library("passes_test", "FRAGMENT")
    yield library
    library._destroy()


class TestRecomputeBan:
    """Why a node must not be computed a second time."""

    @pytest.mark.parametrize(
        ("target", "args", "reason"),
        [
            (aten.sin.default, (), None),
            (aten.mul.Tensor, (2.0,), None),
            (aten.clone.default, (), None),
            (aten.full_like.default, (1.0,), None),
            (torch.ops.prims.convert_element_type.default, (torch.float16,), None),
            (aten.view.default, ([4, 2],), None),
            (aten.select.int, (0, 1), None),
            (aten.split.Tensor, (1,), None),
            (aten.mm.default, (torch.empty(4, 2),), "costly op"),
            (aten.sum.dim_IntList, ([0],), "costly op"),
            (aten.var_mean.correction, ([0],), "costly op"),
            (aten.rand_like.default, (), "random op"),
            (aten.bernoulli.p, (0.5,), "random op"),
            (aten.native_dropout.default, (0.5, True), "random op"),
            (aten.add_.Tensor, (1.0,), "op with side effects"),
        ],
    )
    def test_aten_ops(self, toy, target, args, reason):
        b = toy.Builder()
        x = b.input("primals_1", 2, 4)
        args = [b.input("w", *a.shape) if isinstance(a, torch.Tensor) else a for a in args]
        assert recompute_ban(b.call(target, x, *args)) == reason

    def test_graph_inputs(self, toy):
        assert recompute_ban(toy.Builder().input("primals_1", 2)) == "graph input"

    def test_constants_and_items_of_tuples_may_be(self, toy):
        b = toy.Builder()
        pair = b.call(aten.var_mean.correction, b.input("primals_1", 2, 4), [1])
        assert recompute_ban(b.call(operator.getitem, pair, 0)) is None
        assert recompute_ban(b.graph.get_attr("constant")) is None

    def test_sizes_and_arithmetic_on_them_may_be(self, toy):
        b = toy.Builder(dynamic=True)
        size = b.call(aten.sym_size.int, b.input("primals_1", "batch", 4), 0)
        assert recompute_ban(size) is None
        assert recompute_ban(b.call(operator.mul, size, 4)) is None

    def test_calls_that_are_no_op_of_torch(self, toy):
        b = toy.Builder()
        node = b.call(operator.neg, b.input("primals_1", 2))
        assert recompute_ban(node) == f"unknown call {operator.neg}"

    def test_ops_of_other_namespaces(self, toy, library):
        library.define("twice(Tensor x) -> Tensor")
        library.impl("twice", lambda x: x * 2, "CompositeExplicitAutograd")
        b = toy.Builder()
        node = b.call(torch.ops.passes_test.twice.default, b.input("primals_1", 2))
        assert recompute_ban(node) == "op of namespace passes_test"


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (aten.view.default, True),
        (aten.detach.default, True),
        (aten.split.Tensor, True),
        (aten.clone.default, False),
        (aten.add_.Tensor, False),
        (aten.var_mean.correction, False),
        (aten._assert_async.msg, False),
    ],
)
def test_views_are_told_by_their_schema(target, expected):
    assert is_view(target) is expected
