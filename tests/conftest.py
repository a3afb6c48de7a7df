"""Before any test imports anything."""

import gc
import os
from pathlib import Path

import pytest

# Tests run in two processes at a time; a thread more in each would only wait for a core.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Triton reads it once, when it is imported. On a machine with a GPU the kernels are compiled instead.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_configure(config: pytest.Config) -> None:
    """Let the workers of pytest-xdist share the processes that commands are forked from."""
    if getattr(config.option, "numprocesses", None):
        from commands import serve

        serve()


def pytest_collection_finish() -> None:
    """Leave what was imported out of all later garbage collections."""
    gc.collect()
    gc.freeze()
