"""Students that are trained side by side: each is its single run bit for bit, and the teacher runs once for all."""

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest
from distill_world import MANY_TERMS, SEQ_LEN, World
from helpers import save_tiny_model

from compress.base.errors import CompressError, InterruptedRun
from compress.distill import CacheConfig, DistillConfig, DistillResult
from compress.distill.asked import Training
from compress.distill.distillation import distill_together
from compress.distill.loop import train
from compress.distill.rollouts.config import OnPolicyConfig
from compress.distill.students.config import LoraConfig
from compress.distill.teachers.caching import make_cache
from compress.distill.teachers.source import LiveTeacher
from compress.distill.together import OWN, alike

Options = Callable[..., DistillConfig]
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "many terms": MANY_TERMS,
    "adapters": {"lora": LoraConfig(r=4, dropout=0.2), "lr": 1e-2, "heldout_every": 3},
    "reverse": {"divergence": "reverse_kl", "temperature": 2.0, "clip_norm": 0.1, "schedule": "wsd"},
    "cross-entropy": {"alpha": 0.0, "optimizer": "muon", "checkpoint_every": 3},
}


def asked(world: World, configs: dict[str, DistillConfig], prefix: str = "", **changes: Any) -> list[Training]:
    return [
        Training(config=config, **world.arguments(f"{prefix}{name}", **changes)) for name, config in configs.items()
    ]


def left(world: World, name: str) -> dict[str, Any]:
    """All that a training left but times."""
    times = ("tokens_per_s", "peak_gib", "mfu")
    rows = [{key: value for key, value in row.items() if key not in times} for row in world.metrics(name)]
    files = sorted((world.root / name).rglob("*.safetensors"))
    return {"metrics": rows, **{str(path.relative_to(world.root / name)): path.read_bytes() for path in files}}


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of each of the teacher's forward passes from here on."""
    rows: list[int] = []
    forward = LiveTeacher.forward

    def counting(self: LiveTeacher, batch: Any) -> Any:
        rows.append(len(batch.row_ids))
        return forward(self, batch)

    monkeypatch.setattr(LiveTeacher, "forward", counting)
    return rows


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_each_is_its_single_run_and_the_teacher_runs_as_for_one(
    world: World, options: Options, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The students have dropout, so each must have its own random numbers."""
    configs = {name: options(precision=precision, micro_batch_rows=2, **way) for name, way in WAYS.items()}
    rows = counted(monkeypatch)
    single = {name: world.run(f"single {name}", config) for name, config in configs.items()}
    alone, rows[:] = sum(rows) / len(configs), []
    found = distill_together(asked(world, configs))
    for name, result in zip(configs, found, strict=True):
        assert isinstance(result, DistillResult)
        assert left(world, name) == left(world, f"single {name}"), name
        assert result.together == len(configs)
        assert result.heldout_kl == single[name].heldout_kl
    # each step once; held-out rows at the start and after steps 2, 3, 4, 6 and 8, which are those of any student
    heldout = 6 * (1 + 5)
    assert sum(rows) == 8 * 4 + heldout
    assert sum(rows) < 1.2 * alone
    teacher = single["plain"].flops - found[1].flops if isinstance(found[1], DistillResult) else 0.0
    per_student = [each.flops for each in found if isinstance(each, DistillResult)]
    assert sum(per_student) == pytest.approx(sum(each.flops for each in single.values()) - 4 * teacher, rel=0.2)
    assert distill_together(asked(world, configs)) == found


def test_students_of_different_depth_and_a_cache(world: World, options: Options) -> None:
    deeper = save_tiny_model(world.root / "deeper", "gpt2", seed=5, scale=0.1, num_hidden_layers=2)
    config = options()
    cache = make_cache(CacheConfig(), config, teacher=world.teacher, data=world.data, out=world.root / "cache").path
    for name, kept in (("live", None), ("cached", cache)):
        trainings = [
            Training(config=config, **world.arguments(f"{name}-0", cache=kept)),
            Training(config=config, **world.arguments(f"{name}-1", cache=kept, student=deeper)),
        ]
        distill_together(trainings)
    world.run("single", config)
    world.run("single deeper", config, student=deeper)
    for name, single in (("live-0", "single"), ("live-1", "single deeper"), ("cached-1", "single deeper")):
        assert left(world, name) == left(world, single)


@pytest.mark.faults(1, 8)
def test_killed_or_stopped_they_go_on_together_and_one_alone(
    world: World, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = {name: options(checkpoint_every=2, **WAYS[name]) for name in ("plain", "adapters", "reverse")}
    for name, config in configs.items():
        world.run(f"single {name}", config)
    rate, calls = train.learning_rate, [0]

    def at(call: int, end: Callable[[], None]) -> None:
        calls[0] = 0

        def ending(*arguments: Any) -> float:
            calls[0] += 1
            if calls[0] == call:
                end()
            return rate(*arguments)

        monkeypatch.setattr(train, "learning_rate", ending)

    class Killed(BaseException):
        pass

    def kill() -> None:
        raise Killed

    at(11, kill)  # the second student in its fourth step: the first has a checkpoint of step 4, the others of step 2
    with pytest.raises(Killed):
        distill_together(asked(world, configs))
    at(5, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(InterruptedRun, match=r"(after step 5 of 8(.|\n)*){3}"):
        distill_together(asked(world, configs))
    at(-1, kill)
    world.run("reverse", configs["reverse"])
    rows = counted(monkeypatch)
    distill_together(asked(world, configs))
    assert sum(rows) == 3 * 4 + 6 * 2
    for name in configs:
        assert left(world, name) == left(world, f"single {name}"), name


def test_one_that_fails_does_not_stop_the_others(world: World, options: Options) -> None:
    configs = {
        "wild": options(lr=1e30, clip_norm=1e30, max_skipped_steps=2, warmup_fraction=0.0),
        "plain": options(max_skipped_steps=3),
    }
    failed, made = distill_together(asked(world, configs))
    assert isinstance(failed, CompressError)
    assert "in a row" in str(failed)
    assert isinstance(made, DistillResult)
    world.run("single", configs["plain"])
    assert left(world, "plain") == left(world, "single")
    with pytest.raises(CompressError, match="in a row"):
        world.run("wild", configs["wild"])


def test_which_are_alike(options: Options) -> None:
    configs = [
        options(), options(lr=1.0, alpha=0.5), options(seed=1), options(tokens=4 * SEQ_LEN), options(lr=1.0),
        options(trackers=("tensorboard",)), options(trackers=("tensorboard",)),
        options(on_policy=OnPolicyConfig()), options(on_policy=OnPolicyConfig()),
    ]  # fmt: skip
    assert alike([(config, "one") for config in configs]) == [[0, 1, 4], [2], [3], [5], [6], [7], [8]]
    assert alike([(options(), "one"), (options(), "another"), (options(), "one")]) == [[0, 2], [1]]
    assert {field for field in OWN if not hasattr(options(), field)} == set()
