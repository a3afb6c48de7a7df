"""A small world for training tests: two models with one tokenizer, and a token store of made-up text."""

import dataclasses
import json
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import save_tiny_model

from compress.base.config import to_dict
from compress.base.errors import InterruptedRun
from compress.data import DataConfig, prepare
from compress.distill import DistillConfig, DistillResult, distill
from compress.distill.config import HiddenConfig, Schedule, SimilarityConfig, Weights
from compress.distill.loop import train
from compress.distill.loop.accelerator import make_accelerator
from compress.distill.loop.step import Losses, StudentWithLoss
from compress.distill.objective.objective import make_objective
from compress.distill.objective.part import Pair
from compress.distill.objective.schedules import Setting, setting_at
from compress.distill.teachers.source import LiveTeacher

SEQ_LEN = 32
MANY_TERMS: dict[str, Any] = {
    "weights": Weights(hidden=Schedule(from_=0.5, to=0.1, shape="cosine", over=0.75), similarity=1.0),
    "hidden": HiddenConfig(pairs=((0, 1),), projection="linear"),
    "similarity": SimilarityConfig(pairs=((0, 1),)),
    "alpha": Schedule(from_=0.9, to=0.5),
    "temperature": Schedule(from_=3.0, to=1.0, shape="step", over=0.5),
    "balance": "level",
}
"""Options of a run with all that a checkpoint has to keep for its objective."""
HELDOUT = 6


@dataclasses.dataclass(frozen=True)
class World:
    """Folders a run needs; `run` is `distill` on them."""

    root: Path
    teacher: Path
    student: Path
    data: Path

    def arguments(self, name: str, **changes: Any) -> dict[str, Any]:
        """Arguments of `distill` for a run whose results go to `root / name`."""
        folder = self.root / name
        paths = {"student": self.student, "teacher": self.teacher, "data": self.data}
        return {**paths, "out": folder / "student", "work": folder / "train", **changes}

    def run(self, name: str, config: DistillConfig, **changes: Any) -> DistillResult:
        """Train, with some of `arguments` changed."""
        return distill(config, **self.arguments(name, **changes))

    def run_stopped(self, name: str, config: DistillConfig, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """Train until SIGTERM comes in a step, 1-based, and the run stops after it."""
        with monkeypatch.context() as patched:
            stop_at(patched, step)
            with pytest.raises(InterruptedRun, match=rf"after step {step}\b"):
                self.run(name, config)

    def command(self, name: str, config: DistillConfig) -> list[str]:
        """Arguments of `compress` for the same run."""
        models = ["--student", str(self.student), "--teacher", str(self.teacher), "--data", str(self.data)]
        options = [f"--set=distill.{key}={json.dumps(value)}" for key, value in to_dict(config).items()]
        return ["distill", *models, "--out", str(self.root / name), *options]

    def metrics(self, name: str) -> list[dict[str, Any]]:
        """Rows of a run's metrics.jsonl."""
        text = (self.root / name / "train" / "metrics.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()]


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """SIGTERM in a step, 1-based."""
    rate = train.learning_rate

    def signalled(config: DistillConfig, index: int, steps: int) -> float:
        if index + 1 == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return rate(config, index, steps)

    monkeypatch.setattr(train, "learning_rate", signalled)


def losses_of(config: DistillConfig, student: Any, teacher: Any | None, work: Path) -> Losses:
    """What runs micro-batches of `config.micro_batch_rows` through two models that lie in memory."""
    assert config.micro_batch_rows is not None
    objective = make_objective(config, Pair(student.config, None if teacher is None else teacher.config))
    vocabulary = student.get_input_embeddings().num_embeddings
    guide = None if teacher is None else LiveTeacher(teacher, objective.needs, vocabulary)
    model = StudentWithLoss(student, objective, vocabulary)
    return Losses(make_accelerator(config, work), model, objective, guide, config.micro_batch_rows)


def setting_of(config: DistillConfig, *, teacher: bool = True) -> Setting:
    """What the options say of the first step of a run whose terms are those of the logits."""
    return setting_at(config, ("soft", "hard") if teacher else ("hard",), 0.0)


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
