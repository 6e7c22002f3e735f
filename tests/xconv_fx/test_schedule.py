"""What Inductor would run, read before code is generated: on graphs small enough to be told by eye.

What is expected is what Inductor 2.13 writes for each (``TORCH_LOGS=output_code``).
"""

import math

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from xconv_fx import _torch
from xconv_fx._schedule import read_schedule
from xconv_fx.ops.sketching import draw_octonions
from xconv_fx.sketches.tiles import draw_signs, grid_of, tile_with_rows, untile_with_rows

aten = torch.ops.aten


def schedule(
    function,
    *args,
    settings=None,
    workspace_of=lambda _node, **_: 0,
    visible=(),
    input_strides=None,
):
    def returning_a_tuple(*args):
        outputs = function(*args)
        return outputs if isinstance(outputs, tuple) else (outputs,)

    table = _torch.inductor_decompositions()
    module = make_fx(returning_a_tuple, decomposition_table=table, tracing_mode="fake")(*args)
    before = str(module.graph)
    found = read_schedule(
        module,
        {**_torch.inductor_settings(), **(settings or {})},
        is_backward=False,
        visible_outputs=visible,
        workspace_of=workspace_of,
        input_strides=input_strides,
    )
    assert str(module.graph) == before
    return found.program


def sizes(program, names):
    return [program.nbytes[name] for name in names]


def test_loops_are_fused_and_what_they_alone_read_is_not_stored():
    program = schedule(lambda x: ((x.sin() + 1).sum(1), x.cos()), torch.ones(64, 32))
    (kernel,) = program.kernels
    assert sizes(program, kernel.outputs) == [64 * 4, 64 * 32 * 4]
    assert kernel.reads == program.inputs
    assert program.outputs == kernel.outputs


def test_all_loops_between_two_extern_kernels_are_one_launch():
    def step(x, w):
        y = x.sin()
        total = (y * 2).sum(0)
        product = y @ w
        return product.exp(), total, product.t().contiguous().sum(1)

    program = schedule(step, torch.ones(64, 32), torch.ones(32, 16))
    first, middle, last = program.kernels
    assert middle.name == "mm"
    assert len(first.outputs) == 2
    assert middle.reads == (first.outputs[0], program.inputs[1])
    assert sizes(program, middle.outputs) == [64 * 16 * 4]
    assert last.reads == middle.outputs
    assert set(last.outputs) == {program.outputs[0], program.outputs[2]}


def test_parts_of_a_concatenation_are_written_where_they_belong():
    def step(x, y):
        return torch.cat([x.sin(), y.cos()], 1)

    program = schedule(
        step, torch.ones(8, 512), torch.ones(8, 512), settings={"max_fusion_size": 1}
    )
    # One buffer, whatever the number of loops that fill it.
    assert [name for kernel in program.kernels for name in kernel.outputs] == [program.outputs[0]]
    assert program.nbytes[program.outputs[0]] == 8 * 1024 * 4


def test_results_of_one_call_are_allocated_by_it():
    def step(x):
        values, indices = torch.ops.aten.sort.default(x)
        return values.sin(), indices

    program = schedule(step, torch.ones(8, 16))
    call = program.kernels[0]
    assert sorted(sizes(program, call.outputs)) == [8 * 16 * 4, 8 * 16 * 8]
    assert all(kernel.outputs != call.outputs for kernel in program.kernels[1:])
    assert program.outputs[1] in call.outputs


def test_a_view_that_is_returned_lives_in_what_it_views():
    def step(x):
        y = x.sin()
        return y, y.view(-1), x.view(-1)

    program = schedule(step, torch.ones(8, 16))
    assert program.outputs[0] == program.outputs[1]
    assert program.outputs[2] == program.inputs[0]


def test_an_output_that_is_none_has_no_value():
    program = schedule(lambda x: (x.sin(), None), torch.ones(8, 16))
    assert program.outputs[1] is None


def test_loops_take_the_memory_of_what_they_read_last_element_by_element():
    def step(x, w):
        product = x @ w
        return product.exp() * 2

    program = schedule(step, torch.ones(32, 32), torch.ones(32, 32))
    product, loops = program.kernels
    assert loops.reused == product.outputs


@pytest.mark.parametrize(
    "use",
    [
        # Another order of the elements, another size, and one that is read again.
        lambda y: y.t().contiguous().exp(),
        lambda y: y.exp().to(torch.float64),
        lambda y: (y.exp(), y @ y),
    ],
)
def test_loops_take_no_memory_that_they_cannot(use):
    program = schedule(lambda x, w: use(x @ w), torch.ones(32, 32), torch.ones(32, 32))
    assert all(kernel.reused == () for kernel in program.kernels)


def test_extern_kernels_are_asked_for_their_workspace():
    asked = []

    def workspace_of(node, laid_out):
        asked.append((node.target, [laid_out[n].stride() for n in node.all_input_nodes]))
        return 77

    def step(x, w):
        return torch.ops.aten.convolution.default(
            x.sin(), w, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1
        ).cos()

    x, w = torch.ones(1, 4, 8, 8), torch.ones(4, 4, 3, 3)
    program = schedule(step, x, w, workspace_of=workspace_of)
    # Channels-last, as Inductor lays them out here; the graph has them contiguous.
    assert asked == [(aten.convolution.default, [(256, 1, 32, 4), (36, 1, 12, 4)])]
    assert sum(k.workspace_nbytes for k in program.kernels) == 77


def test_the_results_of_a_call_are_not_asked_for_the_workspace_of_the_call():
    asked = []

    def workspace_of(node, laid_out):
        asked.append((node.target, [t.shape for t in laid_out.values()]))
        return 77

    seed = torch.zeros(40, dtype=torch.int32)
    program = schedule(
        lambda s: draw_octonions(s, [2, 1, 3, 3], 5), seed, workspace_of=workspace_of
    )
    assert asked == [(draw_octonions, [(40,)])]
    assert sum(k.workspace_nbytes for k in program.kernels) == 77


def test_layout_copies_of_inductor_are_there():
    # Eight convolutions of a size that Inductor lays out channels-last: weights are copied.
    weights = [torch.ones(64, 64, 3, 3) for _ in range(8)]

    def step(x, *weights):
        for w in weights:
            x = torch.ops.aten.convolution.default(
                x, w, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1
            )
        return x

    program = schedule(step, torch.ones(2, 64, 16, 16), *weights)
    made = [name for kernel in program.kernels for name in kernel.outputs]
    assert sizes(program, made).count(64 * 64 * 9 * 4) == 8


def test_inputs_may_be_laid_out_otherwise_than_the_graph_says():
    def step(x, w):
        return torch.ops.aten.convolution.default(
            x, w, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1
        )

    x, w = torch.ones(2, 64, 16, 16), torch.ones(64, 64, 3, 3)
    copied = schedule(step, x, w)
    # Channels-last already: no copy of the input is made.
    given = schedule(step, x, w, input_strides={0: (16384, 1, 1024, 64)})
    made = [
        [v for k in program.kernels for v in k.outputs if program.nbytes[v] == x.nbytes]
        for program in (copied, given)
    ]
    assert [len(values) for values in made] == [2, 1]


def test_what_inductor_cannot_lower_is_its_own_error():
    def fail(_node, **_):
        raise RuntimeError("no workspace is known")

    with pytest.raises(Exception, match="no workspace is known"):
        schedule(lambda x, w: x @ w, torch.ones(4, 4), torch.ones(4, 4), workspace_of=fail)


@pytest.mark.parametrize("extent", [24, 25, 26])
def test_what_sticks_out_of_tiles_is_not_stored(extent):
    size, side, kept, order = (2, 8, extent, extent), 8, (1, 2, 5), [0, 2, 3, 1]
    signs, divisors = draw_signs(torch.tensor(1), grid_of(size, side), side, kept, order)
    planes = tile_with_rows(torch.ones(size), signs, divisors, side, kept, order)
    program = schedule(
        lambda *args: untile_with_rows(*args, size, torch.float32, side, kept, order), planes, signs
    )
    stored = sizes(program, [name for kernel in program.kernels for name in kernel.outputs])
    assert len([nbytes for nbytes in stored if nbytes >= 2 * 8 * extent**2 * 4]) == 1


@pytest.mark.parametrize(("order", "num_stored"), [([0, 2, 3, 1], 1), (None, 2)])
def test_what_is_stored_in_the_order_of_its_convolution_is_not_copied_for_it(order, num_stored):
    size = (2, 32, 16, 16)

    def step(x, w):
        value = torch.ops.xconv.store(x.relu(), order)
        sums = value.permute(0, 2, 3, 1).reshape(2, 4, 4, 16, 32).sum((2, 3))  # as an encode reads
        return sums, torch.ops.aten.convolution(
            value, w, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1
        )

    program = schedule(step, torch.ones(size), torch.ones(64, 32, 3, 3))
    stored = sizes(program, [name for kernel in program.kernels for name in kernel.outputs])
    assert stored.count(math.prod(size) * 4) == num_stored
