"""Fixtures of the training tests; see `distill_world`."""

import dataclasses
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from distill_world import HELDOUT, SEQ_LEN, World
from helpers import save_tiny_model

from compress.data import DataConfig, prepare
from compress.distill import DistillConfig


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sentences a small model can learn something of, one JSON document a line."""
    rng = random.Random(0)
    names = ["ann", "bob", "cat", "dan"]
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    lines = [f"{rng.choice(names)} saw {rng.choice(names)} and {rng.choice(names)} went home." for _ in range(120)]
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    return path


@pytest.fixture(scope="session")
def base_world(tmp_path_factory: pytest.TempPathFactory, text_file: Path) -> World:
    root = tmp_path_factory.mktemp("world")
    teacher = save_tiny_model(root / "teacher", "gpt2", seed=1, scale=0.1, num_hidden_layers=2)
    student = save_tiny_model(root / "student", "gpt2", seed=2, scale=0.1, num_hidden_layers=1)
    prepare(
        DataConfig(dataset=str(text_file), seq_len=SEQ_LEN, heldout_sequences=HELDOUT),
        tokenizer=teacher,
        out=root / "data",
    )
    return World(root, teacher, student, root / "data")


@pytest.fixture
def world(base_world: World, tmp_path: Path) -> World:
    """The shared models and data with a root of its own for results."""
    return dataclasses.replace(base_world, root=tmp_path)


@pytest.fixture(scope="session")
def options() -> Callable[..., DistillConfig]:
    """A config of eight steps of four rows, logged and measured often, changed by keyword."""

    def make(**changes: Any) -> DistillConfig:
        base = DistillConfig(
            tokens=8 * 4 * SEQ_LEN,
            batch_tokens=4 * SEQ_LEN,
            lr=3e-3,
            warmup_fraction=0.25,
            log_every=1,
            heldout_every=4,
            heldout_sequences=HELDOUT,
            checkpoint_every=2,
            cpu_tuning=False,
        )
        return dataclasses.replace(base, **changes)

    return make
