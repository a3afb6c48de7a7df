"""What the tests on a device run on: a CUDA device or, to try the tests themselves, a CPU."""

import os

import pytest
import torch
from distill_world import base_world, options, text_file, world

__all__ = ["base_world", "device", "options", "text_file", "world"]


@pytest.fixture(scope="session")
def device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda")
    if os.environ.get("GPU_TESTS_ON_CPU"):
        return torch.device("cpu")
    pytest.skip("needs a CUDA device; GPU_TESTS_ON_CPU=1 runs what a CPU can of it")
