"""Text that the student writes and learns from: what is written, what is learned of it, and what a kill leaves."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from distill_world import SEQ_LEN, World

from compress.distill import DistillConfig
from compress.distill.rollouts.config import Growth, OnPolicyConfig

Options = Callable[..., DistillConfig]
OWN = OnPolicyConfig(fraction=1.0, prompt_tokens=8, new_tokens=Growth(from_=4, to=16, repetition=1.0, steps=2))


def test_smoke(world: World, options: Options) -> None:
    world.run("run", options(on_policy=OWN))
    for row in world.metrics("run"):
        print(row)
    print((world.root / "run/student/distill.json").read_text()[:2500])
    print(world.run("run", options(on_policy=OWN)).describe())
