"""A training that ends at its target: where, what it leaves, and what it is when it is called again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from distill_world import SEQ_LEN, World

from compress.base.disk import read_rows, sha256_file
from compress.base.errors import CompressError, UsageError
from compress.data import TokenStore
from compress.distill import DistillConfig, DistillResult, distillation
from compress.distill.asked import Training as Asked
from compress.distill.distillation import distill_alone
from compress.verify.training import Training, check_metrics, check_order, check_uses

Options = Callable[..., DistillConfig]


class Learner:
    """Scores of a student that has learned half of 100 items at first, and from the third time on all but one."""

    every = 2

    def __init__(self, work: Path, kept: float | None) -> None:
        self.key, self.kept, self._work = "a test", kept, work

    def of_folder(self, folder: Path, prefix: tuple[int, ...]) -> list[dict[str, Any]]:
        return self._row(100)

    def of_model(self, model: Any, folder: Path, prefix: tuple[int, ...]) -> list[dict[str, Any]]:
        rows = read_rows(self._work / "ability.jsonl")
        times = sum(row["of"] == "student" for row in rows)
        return self._row(50 if times < 2 else 99)

    def _row(self, right: int) -> list[dict[str, Any]]:
        items = [1.0] * right + [0.0] * (100 - right)
        return [{"task": "t", "metric": "acc", "chance": 0.25, "items": items}]


def asked(world: World, name: str, config: DistillConfig, kept: float | None) -> Asked:
    places = world.arguments(name)
    places["work"].mkdir(parents=True, exist_ok=True)
    return Asked(config=config, ability=Learner(places["work"], kept), **places)


def train(world: World, name: str, config: DistillConfig, kept: float | None) -> DistillResult:
    return distill_alone(asked(world, name, config, kept))


def test_it_ends_at_its_target_with_the_weights_of_that_step(
    world: World, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = options(epochs=1, tokens=None, checkpoint_every=4, keep_checkpoints=99, schedule="constant", log_every=3)
    whole = train(world, "whole", config, None)
    ended = train(world, "ended", config, 0.9)
    assert (whole.reached, ended.reached, ended.steps) == (False, True, 4)
    assert ended.tokens == 4 * config.batch_tokens // SEQ_LEN * SEQ_LEN
    checkpoints = [world.root / name / "train/checkpoints/step-4/model.safetensors" for name in ("whole", "ended")]
    assert sha256_file(checkpoints[0]) == sha256_file(checkpoints[1])
    assert "ended at its target" in ended.describe()
    found = Training(ended.out, world.root / "ended" / "train")
    store = TokenStore.open(world.data)
    for check in (check_metrics, check_order, check_uses):
        check(found, store)
    assert train(world, "ended", config, 0.9) == ended
    with pytest.raises(UsageError, match="the target at which it ends is another"):
        train(world, "ended", config, 0.99)

    def broken(*_: Any) -> None:
        raise CompressError("the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr(distillation, "publish", broken)
        with pytest.raises(CompressError, match="gone"):
            train(world, "cut", config, 0.9)
    assert train(world, "cut", config, 0.9).steps == 4
    students = [world.root / name / "student" / "model.safetensors" for name in ("cut", "ended")]
    assert sha256_file(students[0]) == sha256_file(students[1])


def test_what_is_not_reached_goes_on_to_the_last_step(world: World, options: Options) -> None:
    """99 of 100 items is a share of 0.987, whose interval does not begin at 0.985."""
    result = train(world, "run", options(epochs=1, tokens=None), 0.985)
    assert not result.reached
    assert result.steps > 4
