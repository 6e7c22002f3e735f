import io
import json

import click.testing
import pytest
import torch
from rich.console import Console

from benchmarks import saved_bytes


@pytest.fixture(scope="module")
def row():
    return saved_bytes.count("cifar_net", 2, None, noise_prices=(30.0, 0.001), budgets=(0.5, 0.2))


@pytest.mark.parametrize("wrap", [lambda t: t[0], list, tuple, lambda t: dict(enumerate(t))])
def test_the_loss_depends_on_every_output(wrap):
    outputs = [torch.randn(2, 3, requires_grad=True) for _ in range(2)]
    saved_bytes.loss_of(wrap(outputs)).backward()
    reached = [output for output in outputs if output.grad is not None]
    assert len(reached) == (1 if isinstance(wrap(outputs), torch.Tensor) else 2)
    assert all((output.grad != 0).all() for output in reached)


def test_a_row_orders_the_ways_by_what_they_keep(row):
    dear, cheap = row.xconv_nbytes.values()
    assert list(row.xconv_nbytes) == [30.0, 0.001]
    assert 0 < cheap < dear < row.stock_nbytes <= row.eager_nbytes
    half, fifth = row.budget_nbytes.values()
    assert fifth <= half <= row.stock_nbytes
    assert row.default_nbytes == dear
    assert row.ratio(row.stock_nbytes) == 1.0


def test_a_row_names_the_largest_raw_values_first(row):
    sizes = [value.nbytes for value in row.raw_values]
    assert sizes == sorted(sizes, reverse=True)
    assert sum(sizes) <= row.raw_nbytes <= row.default_nbytes


def test_the_table_has_a_column_for_each_price_and_budget(row):
    table = saved_bytes.results_table([row])
    headings = [column.header for column in table.columns]
    assert [h for h in headings if "budget" in h] == ["budget 0.5", "budget 0.2"]
    prices = [h for h in headings if h.startswith("xconv ")]
    assert prices == ["xconv MB", "xconv 30", "xconv 0.001"]
    out = io.StringIO()
    Console(file=out, width=180).print(table)
    assert "cifar_net" in out.getvalue()
    assert f"{row.ratio(row.default_nbytes):.3f}" in out.getvalue()


def test_the_command_writes_what_it_counted(tmp_path):
    path = tmp_path / "rows.json"
    args = ["mnist_net", "--batch-size", "1", "--noise-price", "0.03", "--json", str(path)]
    result = click.testing.CliRunner().invoke(saved_bytes.main, args, catch_exceptions=False)
    assert result.exit_code == 0
    (row,) = json.loads(path.read_text())
    assert row["model"] == "mnist_net"
    assert list(row["xconv_nbytes"]) == ["0.03"]
    assert list(row["budget_nbytes"]) == [str(budget) for budget in saved_bytes.BUDGETS]


def test_a_price_that_is_not_allowed_is_an_error():
    with pytest.raises(ValueError, match="option 'noise_price' got -1.0"):
        click.testing.CliRunner().invoke(
            saved_bytes.main, ["--noise-price", "-1"], catch_exceptions=False
        )


def test_the_models_counted_by_default():
    assert "resnet18" in saved_bytes._default_models(third_party_models=False)
    assert "timm.regnety_008" in saved_bytes._default_models(third_party_models=True)
