"""Module paths and source lines, from the metadata that Dynamo leaves."""

import operator

import pytest
from torch import fx, nn

from passes.provenance import module_of, source_of


def node_with(**meta):
    node = fx.Graph().call_function(operator.neg, (1,))
    node.meta.update(meta)
    return node


@pytest.mark.parametrize(
    ("path", "module"),
    [
        ("L['self']", "(root)"),
        ("L['self'].conv1", "conv1"),
        ("L['self'].layer1[0].conv2", "layer1.0.conv2"),
        ("L['self']._modules['body']._modules['0']", "body.0"),
        ("L['self'].heads['mask']", "heads.mask"),
        ("L['model'].stem", "stem"),
    ],
)
def test_module_paths_are_those_of_named_modules(path, module):
    stack = {"outer": ("L['self']", nn.Module), "inner": (path, nn.Conv2d)}
    assert module_of(node_with(nn_module_stack=stack)) == module
    assert module_of(node_with(fwd_nn_module_stack=stack)) == module


def test_the_path_below_a_global_model_has_no_prefix():
    stack = {"": ("G['model'].stem", nn.Conv2d)}
    assert module_of(node_with(nn_module_stack=stack)) == "stem"


def test_a_source_is_the_innermost_line_of_the_trace():
    trace = (
        'File "/home/me/train.py", line 9, in forward\n    x = self.body(x)\n'
        '  File "/home/me/net.py", line 31, in forward\n    return self.conv(x)\n'
    )
    assert source_of(node_with(stack_trace=trace)) == "/home/me/net.py:31: return self.conv(x)"


@pytest.mark.parametrize("meta", [{}, {"stack_trace": None}, {"stack_trace": "no frame"}])
def test_what_is_not_known_is_said_to_be_unknown(meta):
    node = node_with(nn_module_stack={}, **meta)
    assert (module_of(node), source_of(node)) == ("unknown", "unknown")
