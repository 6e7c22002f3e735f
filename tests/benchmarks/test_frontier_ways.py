import pytest
import torch
from torch import nn

from benchmarks.frontier_ways import BASELINE, WAYS, find_ways


def test_names_are_unique_and_the_issue_s_ways_are_there() -> None:
    names = [way.name for way in WAYS]

    assert len(set(names)) == len(names)
    assert {"eager", BASELINE, "budget-0.7", "budget-0.1", "checkpoint", "fp8"} <= set(names)
    assert {"rounding-2b", "rounding-4b", "probing-16", "xconv", "xconv-0.05"} <= set(names)


def test_ways_that_store_or_recompute_are_exact() -> None:
    exact = {way.family for way in WAYS if way.exact}

    assert exact == {"stock", "budget", "checkpoint"}
    assert not exact & {way.family for way in WAYS if not way.exact}


def test_the_baseline_is_always_among_the_ways_in_their_order() -> None:
    assert [way.name for way in find_ways(("xconv", "eager"))] == ["eager", BASELINE, "xconv"]
    assert find_ways(()) == WAYS


def test_an_unknown_way_is_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown way 'magic'; known: eager, inductor"):
        find_ways(("magic",))


def test_ways_that_differ_in_nothing_dynamo_sees_do_not_share_code() -> None:
    """Torch's budget is no part of what Dynamo compares: a plain ``inductor`` would be run."""
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    x = torch.randn(2, 4)
    plain, budget = (
        next(way for way in WAYS if way.name == name).build(model)
        for name in (BASELINE, "budget-0.5")
    )
    plain(x)

    with (
        torch.compiler.set_stance("fail_on_recompile"),
        pytest.raises(RuntimeError, match="recompile"),
    ):
        budget(x)
