"""Stopped after every single step, or continued by another number of processes, a run reads the same rows in order."""

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import warm
from helpers import save_tiny_model
from run_world import metrics

from compress.base.config import to_dict
from compress.base.errors import InterruptedRun
from compress.data import DataConfig, TokenStore, prepare
from compress.data.store import shards
from compress.distill import DistillConfig, distill
from compress.distill.loop import train
from compress.distill.loop.step import Losses

BATCH_ROWS = 5


@pytest.fixture(scope="module")
def small_store(recipe: Path) -> Path:
    """A token store of four shards and 23 different rows, which is no multiple of a batch."""
    out = recipe.parent / "small-store"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "SHARD_TOKENS", 6 * 32)
        text, heldout = recipe.parent / "text", 2
        prepare(
            DataConfig(dataset=str(text), seq_len=32, tokens=23 * 32, heldout_sequences=heldout),
            recipe.parent / "teacher",
            out,
        )
    store = TokenStore.open(out)
    assert (store.num_rows, len(store.index["train"]["shards"])) == (23, 4)
    return out


@pytest.fixture
def config() -> DistillConfig:
    """Two epochs: 46 rows in ten steps, of which the fifth goes over the edge of the epochs and the last is partial."""
    return DistillConfig(
        epochs=2, batch_tokens=BATCH_ROWS * 32, lr=3e-3, log_every=1, heldout_sequences=2, checkpoint_every=4
    )


def folders(recipe: Path, student: Path, store: Path, out: Path) -> dict[str, Path]:
    teacher = recipe.parent / "teacher"
    return {"student": student, "teacher": teacher, "data": store, "out": out / "student", "work": out / "train"}


@contextmanager
def stopping_after(steps: int) -> Iterator[None]:
    """SIGTERM comes to this process in the `steps`-th step of a training."""
    calls = iter(range(1, 10**6))
    rate = train.learning_rate

    def signalled(*arguments: Any) -> float:
        if next(calls) == steps:
            os.kill(os.getpid(), signal.SIGTERM)
        return rate(*arguments)

    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as the command does
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(train, "learning_rate", signalled)
            yield
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.faults(2)
def test_stopped_after_every_step_no_row_is_lost_or_repeated(
    recipe: Path,
    student: Path,
    small_store: Path,
    config: DistillConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read: list[torch.Tensor] = []
    backward = Losses.backward

    def noted(self: Losses, batch: Any, *told: object) -> dict[str, Any]:
        read.extend(row for piece in batch.pieces for row in piece.ids)
        return backward(self, batch, *told)

    monkeypatch.setattr(Losses, "backward", noted)
    steps = 0
    while not (tmp_path / "cut" / "student").exists():
        with stopping_after(1):
            try:
                distill(config, **folders(recipe, student, small_store, tmp_path / "cut"))
            except InterruptedRun as stop:
                steps += 1
                assert f"after step {steps} of 10" in str(stop)
            except KeyboardInterrupt:
                assert steps == 9  # nothing is left to stop after the last step but the publishing
    assert steps == 9

    store = TokenStore.open(small_store)
    row_ids = {row.tobytes(): i for i, row in enumerate(store.rows(range(23)))}
    assert len(row_ids) == 23
    ids = [row_ids[row.numpy().astype(np.int64).tobytes()] for row in read]
    assert sorted(ids[:23]) == sorted(ids[23:]) == list(range(23))
    assert ids == [*store.order(config.seed, 0), *store.order(config.seed, 1)]

    distill(config, **folders(recipe, student, small_store, tmp_path / "whole"))
    weights = [(tmp_path / name / "student" / "model.safetensors").read_bytes() for name in ("cut", "whole")]
    assert weights[0] == weights[1]


def go_on_in_two(arguments: dict[str, Path], config: DistillConfig, stop_after: int | None) -> None:
    """The same training in two processes (gloo), stopped after some steps of its own if asked."""
    job = {"config": to_dict(config), "arguments": {key: str(path) for key, path in arguments.items()}}
    done = warm().launch(2, json.dumps({**job, "stop_after": stop_after}), script=Path(__file__))
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.faults(10)
@pytest.mark.parametrize(
    "processes", [(1, 2), pytest.param((2, 1), marks=pytest.mark.slow), pytest.param((2, 1, 2), marks=pytest.mark.slow)]
)
def test_another_number_of_processes_reads_the_same_rows(
    recipe: Path, small_store: Path, config: DistillConfig, tmp_path: Path, processes: tuple[int, ...]
) -> None:
    """Five rows a step, so two processes fill one up. Other rows in any step would show in its loss at once."""
    no_dropout = save_tiny_model(tmp_path / "student", seed=3, num_hidden_layers=2)
    arguments = folders(recipe, no_dropout, small_store, tmp_path / "cut")
    distill(config, **folders(recipe, no_dropout, small_store, tmp_path / "whole"))
    for number, count in enumerate(processes):
        stop_after = 3 if number < len(processes) - 1 else None
        if count == 2:
            go_on_in_two(arguments, config, stop_after)
        elif stop_after is None:
            distill(config, **arguments)
        else:
            with stopping_after(stop_after), pytest.raises(InterruptedRun):
                distill(config, **arguments)
    for found, expected in zip(metrics(tmp_path / "cut"), metrics(tmp_path / "whole"), strict=True):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert found[key] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-4)), key


def main() -> None:
    from compress.base.config import build_from

    job = json.loads(sys.argv[1])
    config = build_from(DistillConfig, job["config"])
    with stopping_after(job["stop_after"] or 10**6):
        try:
            distill(config, **{key: Path(path) for key, path in job["arguments"].items()})
        except InterruptedRun:
            assert job["stop_after"]


if __name__ == "__main__":
    main()
