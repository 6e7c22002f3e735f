"""The balance of a machine."""

import pytest
import torch

import xconv_fx
from xconv_fx import machine
from xconv_fx.options import Options
from xconv_fx.rules import make_rules


def test_the_default_goes_by_the_kind_of_device_and_gives_way_to_the_option():
    assert make_rules(Options()).machine_balance == machine.default_balance("cpu")
    cuda = make_rules(Options(), device_type="cuda").machine_balance
    assert cuda == machine.default_balance("cuda") > machine.default_balance("cpu")
    assert machine.default_balance("unheard of") == machine.default_balance("cpu")
    assert make_rules(Options(machine_balance=3.0), device_type="cuda").machine_balance == 3.0


def test_what_is_measured_is_operations_over_bytes(monkeypatch):
    seconds = {"torch.mm(a, a)": 0.25, "y.copy_(x)": 0.5}
    monkeypatch.setattr(machine, "_SIDE", 8)
    monkeypatch.setattr(machine, "_MOVED_NUMEL", 64)
    monkeypatch.setattr(machine, "_median_s", lambda statement, _: seconds[statement])
    # 2 * 8**3 operations in 0.25 s; 64 floats read and written in 0.5 s.
    assert xconv_fx.measure_machine_balance() == (1024 / 0.25) / (512 / 0.5)


@pytest.mark.gpu
def test_a_gpu_can_be_measured():
    assert 1.0 < xconv_fx.measure_machine_balance(torch.device("cuda")) < 1e4


def test_a_cpu_can_be_measured(monkeypatch):
    monkeypatch.setattr(machine, "_SECONDS", 0.01)
    monkeypatch.setattr(machine, "_MOVED_NUMEL", 2**20)
    # From one slow core to the widest vector units: well within three orders of magnitude.
    assert 0.1 < xconv_fx.measure_machine_balance() < 1e3
