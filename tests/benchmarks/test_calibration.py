import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from rich.console import Console

from benchmarks import calibration
from benchmarks.calibration import (
    BudgetResult,
    PlanNoise,
    calibrate_step,
    main,
    measure_budgets,
    results_table,
    summarise_plan,
)
from benchmarks.gradient_noise import NetNoise, prepare_step
from benchmarks.parameter_noise import ParameterNoise
from benchmarks.trained_nets import draw_batch, find_net
from demos.texture_data import TextureData, split

RESULTS = [
    BudgetResult("net", None, PlanNoise(0.1, 0.2, 0.3), PlanNoise(0.11, 0.1, 0.1)),
    BudgetResult("net", 0.1, PlanNoise(0.1, 0.4, 0.3), PlanNoise(0.1, 0.1, 0.3)),
    BudgetResult("net", 0.05, PlanNoise(0.05, 0.9, 0.8), PlanNoise(0.05, 0.9, 0.2)),
]


@pytest.fixture
def data() -> TextureData:
    return split({"noise": torch.rand(64, 160), "ramp": torch.linspace(0, 1, 160).expand(64, 160)})


def test_a_plan_is_summed_up_over_all_weights_exact_ones_too() -> None:
    parameters = (
        ParameterNoise("a.weight", "weight", 0.3, 0.5, 0.9, -0.5),
        ParameterNoise("b.weight", "weight", 1e-6, 0.9, None, None),
        ParameterNoise("a.bias", "bias", 0.4, 0.5, 0.9, 0.1),
    )
    noise = summarise_plan(NetNoise("net", parameters, (), 0.125))

    assert noise.share_of_bytes == 0.125
    assert noise.weights == pytest.approx((0.6**2 / 2) ** 0.5)
    assert noise.parameters == pytest.approx(((0.6**2 + 0.8**2) / 3) ** 0.5)


def test_the_table_has_the_gains_and_their_mean_at_equal_budgets() -> None:
    console = Console(width=160)
    with console.capture() as captured:
        console.print(results_table(RESULTS))
    lines = [line for line in captured.get().splitlines() if "│" in line]
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]

    default = ["default", "0.100", "0.110", "0.200", "0.100", "2.00", "0.300", "0.100", "3.00"]
    assert rows[0] == ["net", *default]
    # The default price is no equal budget: gains of 4 and 1, of 1 and 4.
    assert rows[3] == ["geometric mean", "", "", "", "", "", "2.00", "", "", "2.00"]


def test_a_net_is_measured_from_end_to_end(data: TextureData) -> None:
    net = find_net("cifar_net")
    step = prepare_step(net, data, num_steps=0, num_samples=2)
    batch = draw_batch(net, data, torch.Generator().manual_seed(1), 16)
    (result,) = measure_budgets(step, calibrate_step(step, batch), [0.06], num_samples=2)

    for plan in (result.modelled, result.measured):
        assert 0.0 < plan.share_of_bytes <= 0.06
        assert plan.weights > 0.0
    assert result.modelled.weights != result.measured.weights


def test_the_command_writes_what_it_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []

    def measured(names: object, budgets: object, *_: object, **settings: object) -> object:
        given.append((names, budgets, settings))
        return RESULTS

    monkeypatch.setattr(calibration, "measure_nets", measured)
    path = tmp_path / "calibration.json"
    arguments = ["--net", "unet2d", "--budget", "0.1", "--samples", "3", "--json", str(path)]
    done = CliRunner().invoke(main, arguments)

    assert done.exit_code == 0, done.output
    assert given == [(("unet2d",), [None, 0.1], {"num_steps": 60, "num_samples": 3})]
    figures = json.loads(path.read_text())
    assert figures["results"][1]["gain"] == pytest.approx(4.0)
    assert figures["settings"] == {"steps": 60, "samples": 3, "inner": "aot_eager"}
