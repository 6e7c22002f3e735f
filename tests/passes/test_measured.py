"""Measured costs: found for a graph, put into its table, written down."""

import dataclasses
import json
import math

import pytest
import torch

from passes import LinearUse, make_plan
from passes.estimate import CodecCost, CostTable, estimate_costs
from passes.fingerprint import graph_lines
from passes.measured import (
    CodecMeasurement,
    GradientMeasurement,
    GraphMeasurement,
    ValueMeasurement,
    common_scale,
    find_measurement,
    measurement_from_dict,
    measurement_to_dict,
    with_measurements,
)

aten = torch.ops.aten


@dataclasses.dataclass(frozen=True)
class Share:
    """A codec as far as costs and files look at it: keeps so many bytes of a hundred."""

    percent: int

    @property
    def name(self):
        return f"share[{self.percent}]"

    exact = False
    needs_seed = True

    def nbytes(self, shape, dtype):
        return math.prod(shape) * dtype.itemsize * self.percent // 100

    def decoding_nbytes(self, shape, dtype):
        del shape, dtype
        return 0

    def noise(self, shape):
        del shape
        return 10.0 / self.percent

    def supports(self, shape, dtype):
        del shape, dtype


FINE, COARSE = Share(50), Share(10)


def graph(toy, rows=10, function=aten.sin.default):
    """Two factors of products, each read linearly by the other's gradient."""
    b = toy.Builder()
    x, v = b.input("primals_1", rows, 10), b.input("primals_2", rows, 10)
    w = b.input("primals_3", 10, 10)
    grads = [b.input(f"tangents_{i}", rows, 10) for i in (1, 2)]
    factors = [b.call(aten.bernoulli.default, x), b.call(function, b.call(aten.mm.default, x, w))]
    outs = [b.call(aten.mul.Tensor, v, factor) for factor in factors]
    gradients = [b.call(aten.mul.Tensor, g, f) for g, f in zip(grads, factors, strict=True)]
    return b.joint(outs, [None, *gradients], static=(1, 2))


def rules_of(toy, *codecs):
    """Uses of sensitivity 1, however few the positions."""
    linear = {aten.mul.Tensor: (LinearUse(arg=1, on_path=True),)}
    return toy.rules(linear=linear, path_codecs=codecs)


@pytest.fixture
def joint(toy):
    return graph(toy)


def value_of(joint, name, harms, noises=(0.1, 1.5)):
    names = [node.name for node in joint.graph.nodes]
    codecs = tuple(
        CodecMeasurement(codec, noise, harm, codec.noise(()), 1.0)
        for codec, noise, harm in zip((FINE, COARSE), noises, harms, strict=True)
    )
    return ValueMeasurement(
        position=names.index(name),
        node=name,
        module="layer",
        nbytes=400,
        is_read=True,
        on_path=False,
        zeros=0.5,
        range_to_rms=3.0,
        kurtosis=2.5,
        codecs=codecs,
    )


@pytest.fixture
def measurement(joint):
    gradients = (GradientMeasurement(1, "layer", 4.0, 2.0, 0.5),)
    values = (
        value_of(joint, "bernoulli", (0.01, 0.05)),
        value_of(joint, "sin", (0.1, 0.5)),
    )
    return GraphMeasurement(graph_lines(joint), 4, values, gradients)


@pytest.fixture
def costs(toy, joint):
    return estimate_costs(joint, rules_of(toy, FINE, COARSE))


class TestWhatIsFound:
    def test_the_graph_itself(self, joint, measurement):
        match = find_measurement([measurement], joint)
        assert match.measurement is measurement
        assert match.remark is None

    def test_the_same_graph_at_other_sizes(self, toy, measurement):
        match = find_measurement([measurement], graph(toy, rows=20))
        assert match.measurement is measurement
        assert match.remark.startswith(f"the closest of 1 is {measurement.fingerprint} (13 lines)")
        assert "First difference at node 0: expected '%0 = input: float32[10, 10]'" in match.remark
        assert "got '%0 = input: float32[20, 10]'" in match.remark

    def test_another_graph(self, toy, measurement):
        match = find_measurement([measurement], graph(toy, function=aten.cos.default))
        assert match.measurement is None
        assert "expected '%7 = aten.sin.default(%6): float32[10, 10]'" in match.remark

    def test_nothing_was_measured(self, joint):
        match = find_measurement([], joint)
        assert (match.measurement, match.remark) == (None, "nothing was measured")


class TestTheScale:
    def test_is_the_geometric_mean_weighted_by_bytes(self, joint):
        # Modelled: 0.2 * 400 = 80 and 1.0 * 400 = 400 bytes a unit of price.
        one = value_of(joint, "sin", (0.1, 4.0))
        heavy = dataclasses.replace(value_of(joint, "sin", (0.8, 0.0)), nbytes=1200)
        measured = GraphMeasurement((), 1, (one, heavy), ())
        logs = 400 * math.log(80 / 0.1) + 400 * math.log(400 / 4.0) + 1200 * math.log(240 / 0.8)
        assert common_scale([measured]) == pytest.approx(math.exp(logs / 2000))

    def test_leaves_a_table_that_was_measured_as_modelled_alone(self, joint, costs, measurement):
        values = tuple(
            value_of(joint, name, (0.2 * k, 1.0 * k), noises=(0.2, 1.0))
            for name, k in (("bernoulli", 7.0), ("sin", 7.0))
        )
        same = dataclasses.replace(measurement, values=values)
        table, unmeasured = with_measurements(costs, joint, same, common_scale([same]))
        assert unmeasured == ()
        for before, after in zip(costs.values, table.values, strict=True):
            for one, other in zip(before.codecs, after.codecs, strict=True):
                assert other.harm == pytest.approx(one.harm)

    def test_of_nothing_is_zero(self):
        assert common_scale([]) == 0.0


class TestTheTable:
    def test_has_the_measured_noise_and_harm(self, joint, costs, measurement):
        table, unmeasured = with_measurements(costs, joint, measurement, 1000.0)
        rows = {value.node: value for value in table.values}
        assert unmeasured == ()
        assert [c.noise for c in rows["sin"].codecs] == [0.1, 1.5]
        # A price of one charges scale * harm bytes, whatever the value's size.
        charged = [c.harm * rows["sin"].nbytes for c in rows["sin"].codecs]
        assert charged == pytest.approx([100.0, 500.0])
        assert [c.nbytes for c in rows["sin"].codecs] == [200, 40]

    def test_moves_bytes_to_where_the_harm_is(self, joint, costs, measurement):
        chosen = {d.node: d.codec for d in make_plan(costs, 0.3).decisions if d.codec}
        assert chosen == {"bernoulli": COARSE, "sin": COARSE}
        table, _ = with_measurements(costs, joint, measurement, common_scale([measurement]))
        chosen = {d.node: d.codec for d in make_plan(table, 0.3).decisions if d.codec}
        assert chosen == {"bernoulli": COARSE, "sin": FINE}

    def test_a_value_without_a_measurement_stays_modelled_and_is_named(
        self, joint, costs, measurement
    ):
        partial = dataclasses.replace(measurement, values=measurement.values[:1])
        table, unmeasured = with_measurements(costs, joint, partial, 1000.0)
        assert unmeasured == ("sin",)
        before, after = ({v.node: v for v in t.values} for t in (costs, table))
        assert after["sin"] == before["sin"]
        assert after["bernoulli"] != before["bernoulli"]

    def test_a_codec_without_a_measurement_leaves_the_value_modelled(self, toy, joint, measurement):
        costs = estimate_costs(joint, rules_of(toy, Share(25)))
        table, unmeasured = with_measurements(costs, joint, measurement, 1000.0)
        assert (table, unmeasured) == (costs, ("bernoulli", "sin"))

    def test_a_codec_that_the_user_chose_stays_free_of_charge(self, joint, costs, measurement):
        free = CostTable(
            tuple(
                dataclasses.replace(
                    v, codecs=tuple(CodecCost(c.codec, c.nbytes, c.noise, 0.0) for c in v.codecs)
                )
                for v in costs.values
            )
        )
        assert with_measurements(free, joint, measurement, 1000.0) == (free, ())

    def test_a_value_of_zeros_costs_its_bytes(self, joint, costs, measurement):
        zero = value_of(joint, "sin", (0.0, 0.0), noises=(0.0, 0.0))
        silent = dataclasses.replace(measurement, values=(measurement.values[0], zero))
        table, _ = with_measurements(costs, joint, silent, 1000.0)
        (row,) = (v for v in table.values if v.node == "sin")
        assert [c.harm for c in row.codecs] == [0.0, 0.0]


class TestAsADict:
    def test_what_is_read_is_what_was_written(self, measurement):
        given = json.loads(json.dumps(measurement_to_dict(measurement, dataclasses.asdict)))
        assert measurement_from_dict(given, lambda c: Share(**c)) == measurement

    def test_changed_lines_are_refused(self, measurement):
        given = measurement_to_dict(measurement, dataclasses.asdict)
        given["graph"][0] = "%0 = parameter: float32[2]"
        with pytest.raises(ValueError, match="its lines were changed") as caught:
            measurement_from_dict(given, lambda c: Share(**c))
        assert str(caught.value).startswith(f"the graph measured as {measurement.fingerprint}")

    def test_a_missing_entry_is_refused(self, measurement):
        given = measurement_to_dict(measurement, dataclasses.asdict)
        del given["values"][0]["codecs"][0]["harm"]
        with pytest.raises(KeyError, match="harm"):
            measurement_from_dict(given, lambda c: Share(**c))
