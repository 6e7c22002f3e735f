"""Plans as files: what was decided is saved, read, compared and decided again."""

import copy
import dataclasses
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import xconv_fx
from passes import PlanMismatchError
from xconv_fx.audit import clear_reports, last_report, publish
from xconv_fx.backend import xconv
from xconv_fx.codecs import Pack, Probe, Quantize, Tile
from xconv_fx.errors import PlanFileError
from xconv_fx.options import Options
from xconv_fx.partition_function import PartitionFunction
from xconv_fx.plans import SCHEMA, Plans, _to_text, compare_plans, load_plans, save_plans


@pytest.fixture(autouse=True)
def _no_reports_of_other_tests():
    clear_reports()


def make_model(channels=8):
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, channels, 3, padding=1),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, 8, 3, padding=1),
        nn.GELU(),
        nn.Conv2d(8, 8, 3, padding=1),
    )


def step(model, x=None, **options):
    """One step of a copy of the model; its gradients by name and the report."""
    torch.compiler.reset()
    model = copy.deepcopy(model)
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(2)) if x is None else x
    compiled = torch.compile(model, backend=xconv, options={"inner": "aot_eager", **options})
    torch.manual_seed(3)
    compiled(x).square().sum().backward()
    return {name: p.grad for name, p in model.named_parameters()}, last_report()


def refusal(model=None, x=None, **options):
    """The error that ends a compilation; Dynamo wraps it."""
    with pytest.raises(RuntimeError) as caught:
        step(make_model() if model is None else model, x, **options)
    error = caught.value.inner_exception
    assert isinstance(error, ValueError)
    return error


@pytest.fixture
def path(tmp_path):
    """A file with the plan of ``make_model()`` at two bits."""
    step(make_model(), bits=2)
    path = tmp_path / "plans.json"
    save_plans(path)
    return path


def changed(path, change):
    """Edit the file's content in place."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


def decisions(content, action):
    return [d for d in content["graphs"][0]["decisions"] if d["action"] == action]


class TestRoundTrip:
    """A file says all there is to say."""

    def test_what_is_read_is_what_was_saved(self, tmp_path):
        _, report = step(make_model())
        saved = xconv_fx.save_plans(tmp_path / "plans.json")
        read = xconv_fx.load_plans(tmp_path / "plans.json")
        assert read == saved
        assert read.records == (report.plan,)
        assert read.torch_version == str(torch.__version__)
        assert read.package_version == xconv_fx.__version__
        assert read.digest == saved.digest
        assert "records" not in repr(read)

    @pytest.mark.parametrize(
        "codec",
        [
            Pack(2),
            Quantize(4, group_size=64),
            Tile(4, (1, 2), 2),
            Probe("independent", 3, "rademacher"),
        ],
    )
    def test_codecs_are_written_by_name_and_options(self, path, codec):
        plans = load_plans(path)
        (record,) = plans.records
        decision = dataclasses.replace(record.decisions[0], codec=codec)
        record = dataclasses.replace(record, decisions=(decision,))
        plans = dataclasses.replace(plans, records=(record,))
        path.write_text(_to_text(plans))
        assert load_plans(path) == plans

    def test_the_fingerprint_is_the_same_in_another_process(self, path):
        code = (
            "import sys; sys.path[:0] = [sys.argv[1]]\n"
            "import importlib.util as util\n"
            "spec = util.spec_from_file_location('t', sys.argv[2])\n"
            "t = util.module_from_spec(spec); spec.loader.exec_module(t)\n"
            "print(t.step(t.make_model(), bits=2)[1].plan.fingerprint)\n"
        )
        root = Path(__file__).parents[2]
        done = subprocess.run(
            [sys.executable, "-c", code, str(root), __file__],
            env={**os.environ, "PYTHONHASHSEED": "7"},
            capture_output=True,
            text=True,
            check=True,
            cwd=root,
        )
        assert done.stdout.split()[-1] == load_plans(path).records[0].fingerprint


class TestReplay:
    """The recorded decisions are carried out, whatever the other options say."""

    @pytest.mark.parametrize("load", [str, Path, load_plans])
    def test_the_same_plan_gives_the_same_gradients(self, path, load):
        expected, planned = step(make_model(), bits=2)
        got, replayed = step(make_model(), plan=load(path), noise_price=100.0)
        assert replayed.plan == planned.plan
        assert replayed.values == planned.values
        for name, gradient in expected.items():
            assert torch.equal(got[name], gradient)

    @pytest.mark.parametrize(
        "options",
        [{}, {"sketch": "tile"}, {"sketch": "independent", "probes": 4}, {"noise_price": 1e9}],
    )
    def test_plans_of_every_kind(self, tmp_path, options):
        expected, planned = step(make_model(), **options)
        save_plans(tmp_path / "p.json")
        got, replayed = step(make_model(), plan=tmp_path / "p.json")
        assert replayed.plan.decisions == planned.plan.decisions
        for name, gradient in expected.items():
            assert torch.equal(got[name], gradient)

    def test_an_edited_plan_is_carried_out(self, path):
        def four_bits(content):
            for d in decisions(content, "sketch"):
                d["codec"]["options"]["bits"] = 4
                # Half a byte an element, and the ranges of its groups of 256 as before.
                d["kept_nbytes"] = Quantize(4).nbytes((2, 8, 16, 16), torch.float32)

        _, replayed = step(make_model(), plan=changed(path, four_bits))
        codecs = {row.codec for row in replayed.values if row.decision == "sketch"}
        assert codecs == {"quantize[4b]"}

    def test_the_cache_key_tells_plans_apart(self, path):
        def identity(plans):
            return PartitionFunction(Options(plan=str(path)), "inductor", {}, 0, plans).identity

        plans = load_plans(path)
        other = dataclasses.replace(plans, records=())
        assert len({identity(p) for p in (None, plans, other)}) == 3
        assert identity(plans) == identity(load_plans(path))

    def test_dynamic_sizes_may_have_other_values(self, tmp_path):
        def dynamic(n):
            x = torch.randn(n, 3, 16, 16)
            torch._dynamo.mark_dynamic(x, 0)  # noqa: TID251
            return x

        _, planned = step(make_model(), dynamic(4), bits=2)
        save_plans(tmp_path / "p.json")
        _, replayed = step(make_model(), dynamic(6), plan=tmp_path / "p.json")
        actions = [[d.action for d in r.plan.decisions] for r in (planned, replayed)]
        assert actions[0] == actions[1]
        assert planned.plan.lines == replayed.plan.lines


class TestRefusals:
    """A plan that does not fit ends the compilation, and says what changed."""

    def test_another_shape(self, path):
        error = refusal(x=torch.randn(2, 3, 8, 8), plan=path)
        assert isinstance(error, PlanMismatchError)
        assert "no plan is recorded for graph" in str(error)
        assert "expected '%2 = input: float32[2, 3, 16, 16]'" in str(error)
        assert "got '%2 = input: float32[2, 3, 8, 8]'" in str(error)

    def test_another_model(self, path):
        error = refusal(make_model(6), plan=path)
        assert (
            "First difference at node 0: expected '%0 = parameter: float32[8, 3, 3, 3]', "
            "got '%0 = parameter: float32[6, 3, 3, 3]'"
        ) in str(error)

    def test_a_region_that_is_exact_now(self, path):
        error = refusal(plan=path, exact_modules="*")
        assert isinstance(error, PlanMismatchError)
        assert "does not fit at" in str(error)

    def test_a_bad_file_ends_the_compilation_too(self, tmp_path):
        error = refusal(plan=tmp_path / "none.json")
        assert isinstance(error, PlanFileError)

    def test_an_exact_value_that_is_no_longer_kept(self, path):
        def drop(content):
            graph = content["graphs"][0]
            graph["decisions"] = [d for d in graph["decisions"] if d["action"] != "pack"]

        assert "does not fit at" in str(refusal(plan=changed(path, drop)))


class TestFiles:
    """What is wrong with a file, in words."""

    def problem(self, path):
        with pytest.raises(PlanFileError) as caught:
            load_plans(path)
        again = pickle.loads(pickle.dumps(caught.value))
        assert str(again) == str(caught.value) == f"plans file {path}: {caught.value.problem}"
        return caught.value.problem

    def test_no_file(self, tmp_path):
        assert self.problem(tmp_path / "none.json").startswith("cannot be read: ")

    def test_no_json(self, tmp_path):
        (tmp_path / "p.json").write_text("plans")
        assert self.problem(tmp_path / "p.json").startswith("cannot be read: ")

    def test_another_schema(self, path):
        changed(path, lambda content: content.update(schema=99))
        assert self.problem(path) == f"expected schema {SCHEMA}, got 99"
        path.write_text("[]")
        assert self.problem(path) == f"expected schema {SCHEMA}, got None"

    def test_a_missing_entry(self, path):
        changed(path, lambda content: content["graphs"][0].pop("noise_price"))
        assert self.problem(path) == "the entry 'noise_price' is missing"

    def test_an_unknown_codec(self, path):
        changed(path, lambda c: decisions(c, "sketch")[0]["codec"].update(name="zip"))
        known = ["pack", "probe", "quantize", "sign_tile", "tile"]
        assert self.problem(path) == f"codec 'zip' is unknown; known are {known}"

    def test_a_codec_with_other_options(self, path):
        changed(path, lambda c: decisions(c, "sketch")[0]["codec"].update(options={"bits": 3}))
        assert self.problem(path).startswith("codec 'quantize' with options {'bits': 3}: option")
        changed(path, lambda c: decisions(c, "sketch")[0]["codec"].update(options={"bit": 3}))
        assert "unexpected keyword argument 'bit'" in self.problem(path)

    def test_an_unknown_action(self, path):
        changed(path, lambda c: decisions(c, "sketch")[0].update(action="forget"))
        assert self.problem(path) == "'forget' is not a valid Action"

    def test_an_entry_of_another_type(self, path):
        changed(path, lambda c: c["graphs"][0].update(noise_price=[]))
        assert "float()" in self.problem(path)
        path.write_text(json.dumps({"schema": SCHEMA, "graphs": [3]}))
        assert "int" in self.problem(path)

    def test_nothing_to_save(self, tmp_path):
        with pytest.raises(PlanFileError, match="there is no plan to save: no graph was compiled"):
            save_plans(tmp_path / "p.json")

    def test_two_plans_for_one_graph(self, tmp_path):
        _, report = step(make_model(), bits=2)
        step(make_model(), bits=8)
        publish(report)
        with pytest.raises(PlanFileError, match="was compiled with two different plans; call"):
            save_plans(tmp_path / "p.json")


class TestCompare:
    """What differs between two sets of plans."""

    def test_nothing(self, path):
        comparison = compare_plans(path, load_plans(path))
        assert comparison.same
        nbytes = comparison.kept_nbytes[0]
        assert str(comparison) == f"the same plans\nbytes kept: {nbytes} -> {nbytes}"

    def test_decisions(self, path, tmp_path):
        step(make_model(), bits=8)
        save_plans(tmp_path / "other.json")
        comparison = compare_plans(path, tmp_path / "other.json")
        assert not comparison.same
        before, after = comparison.kept_nbytes
        assert before < after
        assert any(
            "quantize[2b]" in (c.before or "") and "quantize[8b]" in (c.after or "")
            for c in comparison.changes
        )
        text = str(comparison)
        assert text.startswith("the plans differ\n")
        assert text.count("\n") == len(comparison.changes) + 1

    def test_graphs_and_versions(self, path, tmp_path):
        step(make_model(6), bits=2)
        other = dataclasses.replace(save_plans(tmp_path / "o.json"), torch_version="9")
        comparison = compare_plans(path, other)
        assert comparison.versions == (f"torch: {torch.__version__} -> 9",)
        assert len(comparison.only_before) == 1
        (after,) = comparison.only_after
        assert "differs from node 0 on, here '%0 = parameter: float32[6, 3, 3, 3]'" in after
        assert str(comparison).count("only ") == 2

    def test_with_no_plans(self, path):
        nothing = Plans("1", "1", ())
        assert len(compare_plans(nothing, path).only_after) == 1
        assert len(compare_plans(path, nothing).only_before) == 1
