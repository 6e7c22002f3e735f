"""What the backend promises around the mathematics: registration, errors, fallbacks, reports."""

import functools
import importlib.metadata
import logging
import subprocess
import sys
import warnings

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch._inductor import config  # noqa: TID251
from torch._inductor.scheduler import Scheduler  # noqa: TID251
from torch._inductor.virtualized import V  # noqa: TID251
from torch.utils.checkpoint import checkpoint

import passes
import xconv_fx
from xconv_fx import _fusion, backend
from xconv_fx.errors import OptionError
from xconv_fx.partition_function import device_type_of

SIZE = (2, 3, 11, 13)


def make_net(kernel_size: int = 3) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, kernel_size))


def batch(size: int = 2) -> Tensor:
    return torch.randn(size, *SIZE[1:])


def gradient_noise(model: nn.Module, x: Tensor, compiled) -> tuple[Tensor, dict[str, float]]:
    """Returns the compiled output, and each gradient's relative distance from eager's."""
    model.zero_grad()
    output = compiled(x)
    output.square().sum().backward()
    got = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model(x).square().sum().backward()
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert got.keys() == expected.keys()
    noise = {name: ((got[name] - g).norm() / g.norm()).item() for name, g in expected.items()}
    return output.detach(), noise


# Sums of up to 2,000 float32 products in another order than eager's.
ROUNDING = 1e-5

FRESH_PROCESS = """
import sys
import torch

assert "xconv" in torch.compiler.list_backends()
model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(4, 5, 3))
assert "xconv_fx" not in sys.modules
compiled = torch.compile(model, backend="xconv", options={"inner": "aot_eager"})
compiled(torch.randn(2, 3, 11, 13)).sum().backward()
print(sys.modules["xconv_fx"].last_report().num_sketched_convolutions, "sketched")
"""


def test_the_backend_is_found_by_name_in_a_process_that_never_imports_us(tmp_path):
    names = importlib.metadata.entry_points(group="torch_dynamo_backends").names
    if "xconv" not in names:
        pytest.skip("xconv_fx is not pip-installed, so its entry point is not registered")
    done = subprocess.run(
        [sys.executable, "-c", FRESH_PROCESS],
        cwd=tmp_path,
        text=True,
        capture_output=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout == "1 sketched\n"


@pytest.mark.parametrize(
    ("options", "option", "value", "allowed"),
    [
        ({"bits": 3}, "bits", 3, "one of [8, 4, 2, 1]"),
        ({"bitz": 2}, "bitz", 2, "(did you mean 'bits'?)"),
        ({"sketch": "ortogonal"}, "sketch", "ortogonal", "(did you mean 'orthogonal'?)"),
        ({"inner": "eager"}, "inner", "eager", "one of ['inductor', 'aot_eager']"),
        ({"probes": 4}, "probes", 4, "only with sketch in ['independent', "),
        ({"sketch": "independent", "probes": 0}, "probes", 0, "an int from 1 to "),
        ({"noise_price": -1.0}, "noise_price", -1.0, "a finite number >= 0"),
    ],
)
def test_an_option_error_reaches_the_user_with_name_value_and_what_is_allowed(
    options, option, value, allowed
):
    compiled = torch.compile(make_net(), backend=backend.xconv, options=options)
    with pytest.raises(RuntimeError, match="OptionError: option") as caught:
        compiled(batch())

    assert f"option {option!r} got {value!r}; allowed: " in str(caught.value)
    assert allowed in str(caught.value)
    # How Dynamo carries the error of a backend (torch 2.11 to 2.13).
    assert isinstance(caught.value.inner_exception, OptionError)


def test_probes_beyond_a_values_size_leave_it_exact_and_the_report_says_so(compile_xconv):
    model, x = make_net(), batch()
    compiled = compile_xconv(model, sketch="independent", probes=10_000)
    output, noise = gradient_noise(model, x, compiled)

    torch.testing.assert_close(output, model(x), rtol=0, atol=1e-5)
    assert max(noise.values()) < ROUNDING
    report = xconv_fx.last_report()
    assert report.exact is None
    assert report.num_sketched_convolutions == 0
    (row,) = [row for row in report.exact_convolutions if row.module == "2"]
    assert "a probing count larger than makes sense: r=10000" in row.reason
    assert "the tensor has 99" in row.reason


@pytest.mark.parametrize("devices", [("cpu", "meta"), ("meta", "cpu"), ("meta",)])
def test_a_graph_on_a_cpu_and_another_device_counts_as_the_others(devices):
    inputs = [3, *(torch.empty(2, device=device) for device in devices)]
    assert device_type_of(inputs) == "meta"


def test_a_graph_of_no_tensors_counts_as_the_cpus():
    assert device_type_of([3]) == "cpu"


def test_a_graph_without_a_convolution_is_left_exact(compile_xconv):
    model = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 2))
    x = torch.randn(16, 6)
    compiled = compile_xconv(model)
    output, noise = gradient_noise(model, x, compiled)

    torch.testing.assert_close(output, model(x), rtol=0, atol=1e-5)
    assert max(noise.values()) < ROUNDING
    report = xconv_fx.last_report()
    assert report.exact == "no convolution in this graph"
    assert report.ratio == 1.0
    assert "compiled exactly: no convolution in this graph" in str(report)


class Branching(nn.Module):
    """Chooses a convolution by the values of its input: Dynamo splits the graph there."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.low = nn.Conv2d(4, 5, 3)
        self.high = nn.Conv2d(4, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        return self.high(h) if h.mean() > 0 else self.low(h)


# A quirk of Dynamo (torch 2.13): it reads .grad of what it hands from graph to graph.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf Tensor")
def test_control_flow_that_depends_on_data(compile_xconv):
    model = Branching()
    compiled = compile_xconv(model, bits=8)
    for shift, taken in ((-100.0, "low"), (100.0, "high")):
        with torch.no_grad():
            model.stem.bias.fill_(shift)
        x = batch()
        output, noise = gradient_noise(model, x, compiled)

        torch.testing.assert_close(output, model(x), rtol=1e-5, atol=1e-5)
        # 8 bits leave a noise of half a per cent in a weight's gradient; its size is not exact.
        assert 0 < noise.pop(f"{taken}.weight") < 0.05
        assert max(noise.values()) < ROUNDING
    sketched = [report.num_sketched_convolutions for report in xconv_fx.all_reports()]
    # The stem's graph reads batch data, which the caller holds.
    assert sketched == [0, 1, 1]


def test_double_backward_fails_as_torch_has_it(compile_xconv):
    x = batch().requires_grad_()
    output = compile_xconv(make_net())(x)
    (grad,) = torch.autograd.grad(output.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="does not currently support double backward"):
        grad.sum().backward()


@pytest.mark.parametrize("without_grad", [torch.no_grad, torch.inference_mode])
def test_inference_is_untouched_and_adds_no_report(without_grad, compile_xconv):
    model, x = make_net(), batch()
    compiled = compile_xconv(model)
    with without_grad():
        assert torch.equal(compiled(x), model(x))
    assert xconv_fx.last_report() is None

    compiled(x).sum().backward()
    assert len(xconv_fx.all_reports()) == 1
    with without_grad():
        compiled(x)
    assert len(xconv_fx.all_reports()) == 1


def test_a_frozen_weight_is_reported_and_nothing_is_kept_for_it(compile_xconv):
    model = make_net()
    model[2].weight.requires_grad_(False)
    compiled = compile_xconv(model)
    _, noise = gradient_noise(model, batch(), compiled)

    assert max(noise.values()) < ROUNDING
    report = xconv_fx.last_report()
    (row,) = [row for row in report.exact_convolutions if row.module == "2"]
    assert row.reason == "its weight needs no gradient: nothing is kept for it"
    assert [(row.module, row.decision) for row in report.values] == [("1", "pack")]


def test_a_network_without_trained_convolutions_says_so(compile_xconv):
    model = make_net().requires_grad_(False)
    x = batch().requires_grad_()
    compile_xconv(model)(x).square().sum().backward()
    grad, x.grad = x.grad, None
    model(x).square().sum().backward()

    torch.testing.assert_close(grad, x.grad, rtol=0, atol=1e-4)
    assert xconv_fx.last_report().notes == ("no convolution weight gradient in this graph",)


def test_without_a_cpp_compiler_aot_eager_takes_over_with_one_warning(monkeypatch):
    def unreachable(*_args, **_kwargs):
        raise AssertionError("Inductor was called without a C++ compiler")

    monkeypatch.setattr("xconv_fx._torch.missing_cpp_compiler", lambda: "no g++ on the path")
    monkeypatch.setattr("xconv_fx._torch.compile_with_inductor", unreachable)
    # A cache of its own: whether another test has warned before must not matter.
    warn = functools.cache(backend._warn_no_compiler.__wrapped__)
    monkeypatch.setattr(backend, "_warn_no_compiler", warn)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for kernel_size in (1, 3):
            model = make_net(kernel_size)
            compiled = torch.compile(model, backend=backend.xconv)
            _, noise = gradient_noise(model, batch(), compiled)
            assert 1e-4 < noise["2.weight"] < 2

    texts = [str(w.message) for w in caught if "C++ compiler" in str(w.message)]
    assert len(texts) == 1
    assert "(no g++ on the path); falling back to inner='aot_eager'" in texts[0]
    assert "Install g++ or clang" in texts[0]
    assert [report.num_sketched_convolutions for report in xconv_fx.all_reports()] == [1, 1]


def test_a_failure_inside_the_passes_compiles_exactly_and_is_reported(
    monkeypatch, caplog, compile_xconv
):
    """With every kind of op that reaches the passes whole, for torch to take apart instead."""

    def fail(*_args, **_kwargs):
        raise ZeroDivisionError("forced by the test")

    monkeypatch.setattr(passes, "run", fail)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, padding_mode="replicate"),
        nn.BatchNorm2d(4),
        nn.SiLU(),
        nn.Conv2d(4, 4, 3, padding="valid"),
        nn.GroupNorm(2, 4),
        nn.ELU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 1),
        nn.LayerNorm(5),
        nn.PReLU(),
        nn.AvgPool2d(2),
        nn.Hardtanh(),
        nn.ConvTranspose2d(4, 5, 3),
    )
    x = batch().requires_grad_()
    compiled = compile_xconv(model)
    with caplog.at_level(logging.INFO, logger="xconv_fx"):
        output, noise = gradient_noise(model, x, compiled)

    torch.testing.assert_close(output, model(x), rtol=1e-5, atol=1e-5)
    # Norms take these biases out again: their gradients are nothing but rounding.
    del noise["0.bias"], noise["7.bias"]
    assert max(noise.values()) < 10 * ROUNDING
    report = xconv_fx.last_report()
    assert report.exact == "ZeroDivisionError: forced by the test"
    assert report.values == ()
    assert report.ratio == 1.0
    logged = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert logged == ["compiling this graph exactly: ZeroDivisionError: forced by the test"]


@pytest.fixture
def fail_on(monkeypatch):
    """Makes Inductor fail on graphs that call an op, once it has scheduled them."""

    def fail(op):
        codegen = Scheduler.codegen

        def fail_on_op(scheduler):
            if V.graph.module.graph.find_nodes(op="call_function", target=op):
                raise ZeroDivisionError("forced by the test")
            return codegen(scheduler)

        monkeypatch.setattr(Scheduler, "codegen", fail_on_op)

    with config.patch(fx_graph_cache=False):
        yield fail


def test_a_forward_that_inductor_cannot_compile_is_compiled_exactly(fail_on, caplog, compile_xconv):
    compile_xconv(make_net(), inner="inductor")(batch())  # a report that stays
    fail_on(torch.ops.aten.randint.low)  # which draws the seeds
    model, x = make_net(5), batch()
    compiled = compile_xconv(model, inner="inductor")
    with caplog.at_level(logging.WARNING, logger="xconv_fx"):
        _, noise = gradient_noise(model, x, compiled)

    assert max(noise.values()) < ROUNDING
    reason = "the inner compiler failed: ZeroDivisionError('forced by the test')"
    assert [report.exact for report in xconv_fx.all_reports()] == [None, reason]
    assert xconv_fx.step_report().graphs[-1].kind == "exact"
    logged = [r.getMessage() for r in caplog.records if r.name == "xconv_fx"]
    assert logged == [f"compiling this graph exactly: {reason}"]


def test_a_budget_in_bytes_holds_for_a_graph_that_is_compiled_exactly_in_the_end(
    fail_on, compile_xconv
):
    compiled = compile_xconv(make_net(), inner="inductor", memory_budget=1.0)
    compiled(batch(64))
    exact_nbytes = xconv_fx.step_report().predicted_peak_nbytes
    torch.compiler.reset()
    fail_on(torch.ops.aten.randint.low)
    compiled = compile_xconv(make_net(), inner="inductor", memory_budget=exact_nbytes * 4 // 5)
    with pytest.raises(RuntimeError, match="BudgetError: memory_budget"):
        compiled(batch(64))


def test_autocast_around_the_backward_alone_is_off_as_it_is_compiled_and_runs(
    monkeypatch, compile_xconv
):
    """What it would cast on a GPU, it leaves alone on a CPU: the state is what can be seen."""
    states = []
    compile_graph = _fusion.compile_inner

    def compile_inner(module, example_inputs, **settings):
        compiled = compile_graph(module, example_inputs, **settings)
        if not settings.get("is_backward"):
            return compiled
        states.append(torch.is_autocast_enabled("cpu"))

        def run(args):
            states.append(torch.is_autocast_enabled("cpu"))
            return compiled(args)

        return run

    monkeypatch.setattr(_fusion, "compile_inner", compile_inner)
    output = compile_xconv(make_net(), inner="inductor")(batch())
    with torch.autocast("cpu", torch.bfloat16):
        output.sum().backward()
        assert torch.is_autocast_enabled("cpu")
    assert states == [False, False]


def test_the_note_on_a_backward_goes_to_its_own_graph(fail_on, compile_xconv):
    first, second = make_net(), make_net(5)
    outputs = [compile_xconv(net, inner="inductor")(batch()) for net in (first, second)]
    fail_on(torch.ops.xconv.conv_weight_grad.default)
    outputs[0].sum().backward()  # compiled now, after the second forward

    reports = xconv_fx.all_reports()[-2:]
    noted = [any("op by op" in note for note in r.notes) for r in reports]
    assert noted == [True, False]


def test_a_graph_for_inference_that_inductor_cannot_compile_is_no_failure_of_ours(
    fail_on, caplog, compile_xconv
):
    fail_on(torch.ops.aten.convolution.default)
    compiled = compile_xconv(make_net(), inner="inductor")
    with (
        torch.no_grad(),
        caplog.at_level(logging.WARNING, logger="xconv_fx"),
        pytest.raises(RuntimeError, match="forced by the test"),
    ):
        compiled(batch())
    assert not [r for r in caplog.records if r.name == "xconv_fx"]


def test_a_backward_that_inductor_cannot_compile_runs_op_by_op(fail_on, caplog, compile_xconv):
    fail_on(torch.ops.xconv.conv_weight_grad.default)
    model, x = make_net(5), batch()
    compiled = compile_xconv(model, inner="inductor", noise_price=30.0)
    with caplog.at_level(logging.WARNING, logger="xconv_fx"):
        _, noise = gradient_noise(model, x, compiled)

    assert ROUNDING < max(noise.values()) < 0.02  # of 8 bits
    report = xconv_fx.last_report()
    note = (
        "the backward runs op by op, since the inner compiler failed on it: "
        "ZeroDivisionError('forced by the test')"
    )
    assert report.exact is None
    assert report.notes[-1] == note
    logged = [r.getMessage() for r in caplog.records if r.name == "xconv_fx"]
    assert logged == [note]


@pytest.mark.parametrize("is_interpreted", [False, True])
def test_within_bytes_a_backward_that_inductor_cannot_compile_makes_the_graph_exact(
    is_interpreted, fail_on, compile_xconv
):
    fail_on(torch.ops.xconv.conv_weight_grad.default)
    if is_interpreted:  # torch's own backward fails too
        fail_on(torch.ops.aten.convolution_backward.default)
    model, x = make_net(5), batch()
    compiled = compile_xconv(model, inner="inductor", memory_budget="1GiB")
    _, noise = gradient_noise(model, x, compiled)
    assert max(noise.values()) < ROUNDING
    report = xconv_fx.last_report()
    assert report.exact == "the inner compiler failed: ZeroDivisionError('forced by the test')"
    assert any("op by op" in note for note in report.notes) == is_interpreted


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bits": 8},
        {"bits": 1},
        {"sketch": "tile"},
        {"sketch": "independent", "probes": 8},
        {"sketch": "multichannel", "probes": 8},
        {"sketch": "orthogonal", "probes": 8},
    ],
    ids=lambda options: "-".join(map(str, options.values())) or "default",
)
def test_activations_that_overflow_show_in_the_weight_gradients(options, compile_xconv):
    """A loss scaler looks for them: a sketch must not turn them into finite numbers."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 3))
    compiled = compile_xconv(model, **options)
    for bad in (float("inf"), float("-inf"), float("nan")):
        model.zero_grad()
        x = batch()
        x[1, 2, 4, 5] = bad
        compiled(x.requires_grad_()).sum().backward()

        for conv in model:
            assert not conv.weight.grad.isfinite().all(), bad
            assert conv.bias.grad.isfinite().all(), bad
        assert x.grad.isfinite().all(), bad
    (report,) = xconv_fx.all_reports()
    assert report.num_sketched_convolutions == 2


@pytest.mark.parametrize("middle", [nn.BatchNorm2d(4), nn.SiLU()], ids=["norm", "smooth"])
def test_overflow_before_a_sketched_norm_or_derivative_shows_too(middle, compile_xconv):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), middle, nn.Conv2d(4, 5, 3))
    x = batch()
    x[1, 2, 4, 5] = float("nan")
    compile_xconv(model)(x).sum().backward()

    assert not model[0].weight.grad.isfinite().all()
    assert not model[2].weight.grad.isfinite().all()


class Checkpointed(nn.Module):
    """A region that the user wants recomputed; with the mask of its dropout as a second output."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.first = nn.Conv2d(4, 4, 3)
        self.second = nn.Conv2d(4, 4, 3)
        self.head = nn.Conv2d(4, 5, 1)
        self.rate = rate

    def region(self, h: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        h = F.silu(self.first(h))
        dropped = F.dropout(h, self.rate) if mask is None else h * mask / (1 - self.rate)
        return self.second(dropped).relu(), dropped

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        h, dropped = checkpoint(self.region, self.stem(x), mask, use_reentrant=False)
        return self.head(h), dropped


def test_checkpointed_regions_are_recomputed_exactly(compile_xconv):
    model, x = Checkpointed(0.5), batch()
    output, dropped = compile_xconv(model)(x)
    output.square().sum().backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    expected, _ = model(x, (dropped != 0).detach())
    expected.square().sum().backward()

    torch.testing.assert_close(output, expected, rtol=0, atol=1e-5)
    for name, p in model.named_parameters():
        torch.testing.assert_close(grads[name], p.grad, rtol=0, atol=1e-5 * p.grad.abs().max())
    report = xconv_fx.last_report()
    assert report.exact is None
    assert report.num_recomputed > 0
    # Within the region only what is random is kept, and its convolutions are told of.
    kept = {row.module for row in report.values if row.decision != "recompute"}
    assert kept.isdisjoint({"first", "second"})
    again = {row.module for row in report.values if row.decision == "recompute"}
    assert again >= {"first", "second"}
    reasons = {row.module: row.reason for row in report.exact_convolutions}
    assert "exact recomputation" in reasons["first"]
    assert "rebuilt exactly" in reasons["second"]


DYNAMIC_OPTIONS = [
    pytest.param({}, id="default"),
    pytest.param({"sketch": "tile"}, id="tile"),
    pytest.param({"sketch": "independent", "probes": 32}, id="independent"),
    pytest.param({"sketch": "multichannel", "probes": 32}, id="multichannel"),
    pytest.param({"sketch": "orthogonal", "probes": 32}, id="orthogonal"),
]


# From 16 on, since with one thread torch itself takes another convolution below; to more samples
# than start a lattice of thresholds each.
DYNAMIC_SIZES = (17, 20, 40)


def dynamic_batch(size: int) -> Tensor:
    """A batch whose compilation fails where a guard of ours would fix its size."""
    x = batch(size)
    torch._dynamo.mark_dynamic(x, 0)  # noqa: TID251  torch has no public name for it
    return x


@pytest.mark.parametrize("options", DYNAMIC_OPTIONS)
def test_a_dynamic_batch_size_is_compiled_once(options, compile_xconv, assert_unbiased):
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ReLU(), nn.Conv2d(4, 5, 3, stride=2)
    )
    compiled = compile_xconv(model, **options)
    for size in DYNAMIC_SIZES:
        x = dynamic_batch(size)
        output, noise = gradient_noise(model, x, compiled)

        torch.testing.assert_close(output, model(x), rtol=1e-5, atol=1e-5)
        assert noise["3.bias"] < ROUNDING
        assert noise["3.weight"] > 0.003
    (report,) = xconv_fx.all_reports()
    assert report.num_sketched_convolutions == 1
    assert all(isinstance(row.shape[0], str) for row in report.values if len(row.shape) == 4)

    # At a size that was never traced, the estimate is as unbiased as at the first.
    samples = []
    for _ in range(40):
        model.zero_grad()
        compiled(x).square().sum().backward()
        samples.append(model[3].weight.grad.double().flatten())
    model.zero_grad()
    model(x).square().sum().backward()
    assert_unbiased(torch.stack(samples), model[3].weight.grad)
    assert len(xconv_fx.all_reports()) == 1


def test_inductor_compiles_a_dynamic_batch_size_once(compile_xconv):
    model = make_net()
    compiled = compile_xconv(model, inner="inductor", bits=8)
    for size in DYNAMIC_SIZES:
        x = dynamic_batch(size)
        output, noise = gradient_noise(model, x, compiled)

        torch.testing.assert_close(output, model(x), rtol=1e-5, atol=1e-5)
        assert noise["2.bias"] < ROUNDING
        assert 1e-4 < noise["2.weight"] < 0.05
    (report,) = xconv_fx.all_reports()
    assert report.num_sketched_convolutions == 1


@pytest.mark.parametrize(
    "activation", [nn.SiLU(), nn.Tanh(), nn.PReLU()], ids=["silu", "tanh", "prelu"]
)
def test_derivatives_are_sketched_at_dynamic_sizes_too(activation, compile_xconv):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), activation, nn.Conv2d(4, 5, 3))
    compile_xconv(model)(dynamic_batch(8)).sum().backward()

    report = xconv_fx.last_report()
    assert report.num_sketched_convolutions == 1
    assert {row.decision for row in report.values} <= {"sketch", "pack", "derive"}


def test_reset_forgets_the_reports(compile_xconv):
    compile_xconv(make_net())(batch()).sum().backward()
    assert xconv_fx.last_report() is not None
    torch.compiler.reset()
    assert xconv_fx.last_report() is None
    assert xconv_fx.all_reports() == ()


def test_a_report_tells_bytes_against_the_stock_partition(compile_xconv):
    # Two bits; at the default price ranges and seeds of a net so small weigh as much as its codes.
    compile_xconv(make_net(), noise_price=0.03)(batch()).sum().backward()
    report = xconv_fx.last_report()

    # The one sketch's row of the key schedule, 40 int32, is kept as well.
    assert report.kept_nbytes == sum(row.kept_nbytes for row in report.values) + 160
    assert report.stock_nbytes > 4 * report.kept_nbytes
    assert report.ratio == report.kept_nbytes / report.stock_nbytes


def test_a_report_that_cannot_be_written_does_not_end_training(monkeypatch, caplog, compile_xconv):
    def fail(_report):
        raise ZeroDivisionError("forced by the test")

    monkeypatch.setattr("xconv_fx.audit.publish", fail)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    with caplog.at_level(logging.WARNING, logger="xconv_fx"):
        compile_xconv(model)(batch()).sum().backward()
    assert model[2].weight.grad is not None
    logged = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert logged == ["the report of this graph could not be written"]
