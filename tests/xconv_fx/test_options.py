"""Every option's default, what it takes, and the text of every refusal."""

import copy
import dataclasses
import math
import pathlib
import pickle

import pytest

from xconv_fx.errors import OptionError
from xconv_fx.options import DEFAULT_NOISE_PRICE, Options, parse_options


def refusal(**given):
    with pytest.raises(OptionError) as caught:
        parse_options(given)
    return str(caught.value)


def test_defaults_need_no_thought():
    assert dataclasses.asdict(Options()) == {
        "inner": "inductor",
        "sketch": "auto",
        "probes": None,
        "distribution": "gaussian",
        "bits": None,
        "side": None,
        "kept": None,
        "exact_modules": (),
        "noise_price": DEFAULT_NOISE_PRICE,
        "memory_budget": None,
        "memory_budget_graphs": None,
        "time_price": None,
        "machine_balance": None,
        "strict": True,
        "plan": None,
        "calibration": None,
        "inductor": {},
    }
    assert parse_options(None) == parse_options({}) == Options()


@pytest.mark.parametrize(
    "given",
    [
        {"inner": "aot_eager"},
        {"sketch": "quantize"},
        {"sketch": "quantize", "bits": 8},
        {"bits": 1},
        {"sketch": "tile"},
        {"sketch": "tile", "side": 8, "kept": (1, 1, 1), "bits": 8},
        {"sketch": "independent", "probes": 1, "distribution": "rademacher"},
        {"sketch": "multichannel", "distribution": "rademacher"},
        {"sketch": "orthogonal", "probes": 64},
        {"exact_modules": "layer1.*"},
        {"exact_modules": ["layer1", "*.conv1"]},
        {"noise_price": 0},
        {"noise_price": 2.5},
        {"time_price": 0, "machine_balance": 3.5},
        {"time_price": math.inf},
        {"plan": "plans.json"},
        {"plan": pathlib.Path("plans.json")},
        {"calibration": "measured.json"},
        {"calibration": pathlib.Path("measured.json"), "memory_budget": 0.1},
        {"memory_budget": "8GiB", "memory_budget_graphs": 3},
        {"inductor": {"max_autotune": True}},
    ],
)
def test_what_is_given_is_what_is_set(given):
    options = parse_options(given)
    for field in dataclasses.fields(Options):
        expected = given.get(field.name, getattr(Options(), field.name))
        assert getattr(options, field.name) == expected


def test_options_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Options().bits = 2


def test_the_users_mapping_is_left_alone():
    given = {"bits": 4, "inductor": {"max_autotune": True}}
    before = copy.deepcopy(given)
    parse_options(given)
    assert given == before


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (
            {"inner": "inducter"},
            "option 'inner' got 'inducter'; allowed: one of ['inductor', 'aot_eager'] "
            "(did you mean 'inductor'?)",
        ),
        (
            {"inner": 3},
            "option 'inner' got 3; allowed: one of ['inductor', 'aot_eager']",
        ),
        (
            {"sketch": "multi_channel"},
            "option 'sketch' got 'multi_channel'; allowed: one of ['auto', 'quantize', 'tile', "
            "'independent', 'multichannel', 'orthogonal'] (did you mean 'multichannel'?)",
        ),
        (
            {"sketch": {}},
            "option 'sketch' got {}; allowed: one of ['auto', 'quantize', 'tile', "
            "'independent', 'multichannel', 'orthogonal']",
        ),
        (
            {"sketch": "independent", "distribution": "normal"},
            "option 'distribution' got 'normal'; allowed: one of ['gaussian', 'rademacher']",
        ),
        (
            {"calibration": 3},
            "option 'calibration' got 3; allowed: a path, or a calibration from xconv_fx.calibrate",
        ),
        (
            {"calibration": "c.json", "plan": "p.json"},
            "option 'calibration' got 'c.json'; allowed: only without plan, which decides "
            "everything",
        ),
        ({"bits": 3}, "option 'bits' got 3; allowed: one of [8, 4, 2, 1]"),
        ({"bits": True}, "option 'bits' got True; allowed: one of [8, 4, 2, 1]"),
        ({"bits": 4.0}, "option 'bits' got 4.0; allowed: one of [8, 4, 2, 1]"),
        (
            {"sketch": "independent", "probes": 0},
            "option 'probes' got 0; allowed: an int from 1 to 65536, the number of probing vectors",
        ),
        (
            {"sketch": "independent", "probes": 2.0},
            "option 'probes' got 2.0; "
            "allowed: an int from 1 to 65536, the number of probing vectors",
        ),
        (
            {"sketch": "independent", "probes": True},
            "option 'probes' got True; "
            "allowed: an int from 1 to 65536, the number of probing vectors",
        ),
        (
            {"exact_modules": 3},
            "option 'exact_modules' got 3; "
            "allowed: a module pattern such as 'layer1.*', or a list of such patterns",
        ),
        (
            {"exact_modules": ["layer1", None]},
            "option 'exact_modules' got ['layer1', None]; "
            "allowed: a module pattern such as 'layer1.*', or a list of such patterns",
        ),
        (
            {"exact_modules": ""},
            "option 'exact_modules' got ''; "
            "allowed: a module pattern such as 'layer1.*', or a list of such patterns",
        ),
        ({"noise_price": "0.1"}, "option 'noise_price' got '0.1'; allowed: a finite number >= 0"),
        ({"noise_price": False}, "option 'noise_price' got False; allowed: a finite number >= 0"),
        ({"noise_price": -1}, "option 'noise_price' got -1; allowed: a finite number >= 0"),
        (
            {"noise_price": float("inf")},
            "option 'noise_price' got inf; allowed: a finite number >= 0",
        ),
        (
            {"noise_price": float("nan")},
            "option 'noise_price' got nan; allowed: a finite number >= 0",
        ),
        ({"time_price": -0.5}, "option 'time_price' got -0.5; allowed: a number >= 0, or math.inf"),
        ({"time_price": True}, "option 'time_price' got True; allowed: a number >= 0, or math.inf"),
        (
            {"machine_balance": 0},
            "option 'machine_balance' got 0; "
            "allowed: a finite number > 0, as xconv_fx.measure_machine_balance() returns",
        ),
        (
            {"plan": 3},
            "option 'plan' got 3; allowed: a path, or plans from xconv_fx.load_plans",
        ),
        (
            {"inductor": ["max_autotune"]},
            "option 'inductor' got ['max_autotune']; allowed: a mapping of Inductor settings",
        ),
    ],
)
def test_a_bad_value_is_refused_with_what_is_allowed(given, text):
    assert refusal(**given) == text


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (
            {"probes": 4},
            "option 'probes' got 4; allowed: only with sketch in ['independent', "
            "'multichannel', 'orthogonal'] (here sketch='auto')",
        ),
        (
            {"sketch": "quantize", "probes": 4},
            "option 'probes' got 4; allowed: only with sketch in ['independent', "
            "'multichannel', 'orthogonal'] (here sketch='quantize')",
        ),
        (
            {"sketch": "independent", "bits": 4},
            "option 'bits' got 4; allowed: only with sketch 'auto', 'quantize' or 'tile' "
            "(here 'independent')",
        ),
        (
            {"sketch": "orthogonal", "distribution": "rademacher"},
            "option 'distribution' got 'rademacher'; allowed: only with sketch 'independent' or "
            "'multichannel' (here 'orthogonal')",
        ),
        (
            {"distribution": "rademacher"},
            "option 'distribution' got 'rademacher'; allowed: only with sketch 'independent' or "
            "'multichannel' (here 'auto')",
        ),
        ({"side": 4}, "option 'side' got 4; allowed: only with sketch='tile' (here sketch='auto')"),
        (
            {"sketch": "quantize", "kept": (1,)},
            "option 'kept' got (1,); allowed: only with sketch='tile' (here sketch='quantize')",
        ),
        ({"sketch": "tile", "side": 3}, "option 'side' got 3; allowed: 2, 4 or 8"),
        (
            {"sketch": "tile", "kept": [1]},
            "option 'kept' got (1,); allowed: a tuple of 2 ints from 1 to 512 with side=4",
        ),
    ],
)
def test_options_that_do_not_go_together_are_refused(given, text):
    assert refusal(**given) == text


@pytest.mark.parametrize("graphs", [0, 1.5, True, "2"])
def test_a_number_of_graphs_is_a_positive_int(graphs):
    text = refusal(memory_budget=10**9, memory_budget_graphs=graphs)
    assert text.startswith(f"option 'memory_budget_graphs' got {graphs!r}; allowed: an int >= 1")


@pytest.mark.parametrize("given", [{}, {"memory_budget": 0.5}])
def test_a_number_of_graphs_goes_with_a_budget_in_bytes(given):
    assert refusal(memory_budget_graphs=2, **given) == (
        "option 'memory_budget_graphs' got 2; allowed: only with memory_budget in bytes, such as "
        '"8GiB"; a share needs no division'
    )


NAMES = (
    "['inner', 'sketch', 'probes', 'distribution', 'bits', 'side', 'kept', "
    "'exact_modules', 'noise_price', 'memory_budget', 'memory_budget_graphs', 'time_price', "
    "'machine_balance', 'strict', 'plan', 'calibration', 'inductor']"
)


def test_an_unknown_name_is_refused_with_the_closest_known_one():
    assert refusal(bit=4) == (
        f"option 'bit' got 4; allowed: an option in {NAMES} (did you mean 'bits'?)"
    )
    assert refusal(zzz=None) == f"option 'zzz' got None; allowed: an option in {NAMES}"


def test_a_name_that_is_no_text_is_refused():
    with pytest.raises(OptionError, match="option '7' got 1; allowed: an option in"):
        parse_options({7: 1})


def test_what_is_no_mapping_is_refused():
    with pytest.raises(OptionError) as caught:
        parse_options(["bits"])
    assert str(caught.value) == (
        "option 'options' got ['bits']; allowed: a dict of option names to values"
    )


def test_a_refusal_is_a_value_error_that_tells_its_parts_and_pickles():
    with pytest.raises(ValueError, match="bits") as caught:
        parse_options({"bits": 3})
    error = pickle.loads(pickle.dumps(caught.value))
    assert (error.option, error.value, error.allowed) == ("bits", 3, "one of [8, 4, 2, 1]")
    assert str(error) == str(caught.value)
