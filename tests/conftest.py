"""What every test starts from: a fixed seed, and no compiled code of an earlier test or run."""

import logging
import os
import sys
import tempfile
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _independent_of_other_tests() -> Iterator[None]:
    """Seeds torch, and drops what was compiled.

    Dynamo gives up on a code object after eight compilations and runs it eagerly from then on:
    without the reset a test could pass or fail by what ran before it.
    """
    torch.manual_seed(0)
    yield
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


def pytest_configure(config: pytest.Config) -> None:
    """Shares the cores out, gives the run a compile cache, and keeps torch's trace out of its log.

    On a hit in the cache that torch shares between processes the partitioner does not run, and
    code compiled by an earlier version of this project would be tested in place of this one. A
    cache named in the environment is used all the same, for quick repeats.
    """
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0"))
    if workers and "OMP_NUM_THREADS" not in os.environ:
        threads = max(torch.get_num_threads() // workers, 1)
        os.environ["OMP_NUM_THREADS"] = str(threads)  # of processes that tests start
        torch.set_num_threads(threads)
    if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:
        cache = tempfile.TemporaryDirectory(prefix="xconv-fx-tests-")
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache.name
        config.add_cleanup(cache.cleanup)
    # Printed for a failed test, the structured trace is hundreds of empty lines.
    logging.getLogger("torch.__trace").propagate = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips the tests marked `gpu` where there is no CUDA device."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
