"""Runs that are killed, stopped or damaged, and what the next call makes of them."""

import dataclasses
import json
import math
import os
import resource
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from commands import warm
from distill_world import MANY_TERMS, SEQ_LEN, World, stop_at
from fault_injection import Signal
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from compress.base.disk import sha256_tree
from compress.base.errors import CompressError, InterruptedRun, UsageError
from compress.data import TokenStore
from compress.distill import DistillConfig, distillation
from compress.distill.loop import checkpoint, meters, train
from compress.distill.loop.optimizer import StudentOptimizer
from compress.distill.loop.step import Losses
from compress.distill.students.config import LoraConfig
from compress.distill.students.student import WholeStudent
from compress.verify.training import Training, check_metrics

Options = Callable[..., DistillConfig]


def killed(world: World, name: str, config: DistillConfig, at: str, call: int) -> None:
    """`compress distill` in a process that gets SIGKILL at a call of a function."""
    threads = str(torch.get_num_threads())  # the order of sums, and so the bits, depend on it
    done = warm().run([Signal(at=(at,), call=call)], *world.command(name, config), OMP_NUM_THREADS=threads)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Work as users' processes do, where those of the tests have one thread each."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def weights(world: World, name: str) -> bytes:
    return (world.root / name / "student" / "model.safetensors").read_bytes()


def timeless(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in ("tokens_per_s", "peak_gib", "mfu")} for row in rows]


@pytest.mark.usefixtures("two_threads")
@pytest.mark.faults(1, 3)
@pytest.mark.parametrize(
    "objective", [{}, MANY_TERMS, {"lora": LoraConfig(r=4, dropout=0.2)}], ids=["plain", "many terms", "adapters"]
)
def test_a_run_killed_in_a_step_and_in_two_phases_of_a_save_ends_bitwise_equal(
    world: World, options: Options, capfd: pytest.CaptureFixture[str], objective: dict[str, Any]
) -> None:
    """The student has dropout, so random numbers must be the same; so must learned projections, schedules, levels."""
    config = options(epochs=2, tokens=None, heldout_every=3, checkpoint_every=2, **objective)
    world.run("whole", config)
    killed(world, "cut", config, "compress.distill.loop.train:learning_rate", 4)
    assert sorted(p.name for p in (world.root / "cut/train/checkpoints").iterdir()) == ["step-2"]
    killed(world, "cut", config, "compress.distill.loop.checkpoint:save_file", 4)
    assert [p.name for p in (world.root / "cut/train/checkpoints").glob("*.partial")] == ["step-6.partial"]
    capfd.readouterr()
    killed(world, "cut", config, "compress.distill.loop.checkpoint:publish_folder", 1)
    world.run("cut", config)
    assert "step-6.partial: it was never finished" in capfd.readouterr().err
    saved = [sha256_tree(world.root / name / "student", "**/*.safetensors") for name in ("cut", "whole")]
    assert saved[0] == saved[1]
    assert len(saved[0]) == (2 if "lora" in objective else 1)
    assert timeless(world.metrics("cut")) == timeless(world.metrics("whole"))


@pytest.mark.faults(8)
@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_next_call_ends_bitwise_equal(
    world: World, options: Options, monkeypatch: pytest.MonkeyPatch, signal_number: signal.Signals
) -> None:
    config = options(checkpoint_every=0)
    world.run("whole", config)
    rate = train.learning_rate

    def signalled(config: DistillConfig, step: int, steps: int) -> float:
        if step in (2, 4):
            os.kill(os.getpid(), signal_number)
            os.kill(os.getpid(), signal_number)
        return rate(config, step, steps)

    with monkeypatch.context() as patched:
        patched.setattr(train, "learning_rate", signalled)
        for step in (3, 5):
            with pytest.raises(InterruptedRun, match=f"after step {step} of 8.*step-{step}.*again to continue") as stop:
                world.run("cut", config)
            assert stop.value.exit_code == 75
    world.run("cut", config)
    assert weights(world, "cut") == weights(world, "whole")
    assert timeless(world.metrics("cut")) == timeless(world.metrics("whole"))


def test_a_heldout_loss_measured_after_a_stop_is_in_the_log_once(
    world: World, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped where one was due, killed after the next run has measured it, continued from the same checkpoint."""
    config = options(checkpoint_every=4)
    world.run("whole", config)
    with monkeypatch.context() as patched:
        stop_at(patched, 4)
        with pytest.raises(InterruptedRun):
            world.run("cut", config)
    killed(world, "cut", config, "compress.distill.loop.train:learning_rate", 1)
    assert [row["step"] for row in world.metrics("cut") if "heldout_loss" in row] == [0, 4]
    world.run("cut", config)
    assert timeless(world.metrics("cut")) == timeless(world.metrics("whole"))
    training = Training(world.root / "cut" / "student", world.root / "cut" / "train")
    assert "8 logged steps in order" in check_metrics(training, TokenStore.open(world.data))


def test_measuring_and_saving_count_as_no_time_of_training(
    world: World, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a clock on which a step takes a second, and a measurement a hundred: at the start and after a stop too."""
    now = [0.0]
    backward, measure = Losses.backward, Losses.measure

    def step(self: Losses, batch: Any, *told: object) -> Any:
        now[0] += 1
        return backward(self, batch, *told)

    def measurement(self: Losses, batch: Any, *told: object) -> dict[str, float]:
        now[0] += 100
        return measure(self, batch, *told)

    monkeypatch.setattr(meters, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(Losses, "backward", step)
    monkeypatch.setattr(Losses, "measure", measurement)
    with monkeypatch.context() as patched:
        stop_at(patched, 4)
        with pytest.raises(InterruptedRun):
            world.run("run", options())
    result = world.run("run", options())
    assert now == [8 + 5 * 100]
    assert (result.seconds, result.tokens_per_s) == (8.0, 4 * SEQ_LEN)
    assert [row["tokens_per_s"] for row in world.metrics("run") if "loss" in row] == [4 * SEQ_LEN] * 8


def test_a_heldout_loss_that_is_not_finite_counts_as_none(
    world: World, options: Options, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    measured = iter([3.0, math.nan, 2.0, math.inf, math.nan])
    monkeypatch.setattr(
        Losses, "measure", lambda self, batch, *told: dict.fromkeys(("loss", "soft", "hard", "kl"), next(measured))
    )
    result = world.run("run", options(keep_checkpoints=1))
    assert (result.heldout_loss, result.best_heldout_loss) == (None, 2.0)
    assert [row["heldout_loss"] for row in world.metrics("run") if "heldout_loss" in row] == [
        3.0,
        None,
        2.0,
        None,
        None,
    ]
    assert "held-out loss after step 6 is inf" in " ".join(capfd.readouterr().err.split())
    kept = sorted((world.root / "run/train/checkpoints").iterdir())
    assert [path.name for path in kept] == ["step-4", "step-8"]
    for path in (*(path / "state.json" for path in kept), world.root / "run/student/distill.json"):
        json.loads(path.read_text(), parse_constant=pytest.fail)  # NaN and Infinity are no JSON


def test_a_finished_run_returns_at_once_and_a_changed_one_is_refused(
    world: World, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = world.run("run", options())
    monkeypatch.setattr(distillation, "open_session", None)
    assert world.run("run", options()) == first
    assert world.run("run", options(log_every=3, keep_checkpoints=1)) == first
    with pytest.raises(UsageError, match=r"alpha was 0\.8 and is 0\.5"):
        world.run("run", options(alpha=0.5))
    with pytest.raises(UsageError, match="the teacher is another"):
        world.run("run", options(), teacher=world.student)


def cut_run(world: World, config: DistillConfig) -> Path:
    """A finished run without its result, so that the next call continues from its checkpoints."""
    world.run("run", config)
    shutil.rmtree(world.root / "run" / "student")
    return world.root / "run" / "train" / "checkpoints"


@pytest.mark.faults(24)
def test_other_settings_cannot_continue_a_checkpoint(world: World, options: Options) -> None:
    cut_run(world, options())
    with pytest.raises(UsageError, match=r"lr was 0\.003 and is 0\.001; seed was 0 and is 1.*start anew"):
        world.run("run", options(lr=1e-3, seed=1))
    with pytest.raises(UsageError, match="the student is another"):
        world.run("run", options(), student=world.teacher)


@pytest.mark.faults(3)
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "manifest"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(
    world: World, options: Options, capfd: pytest.CaptureFixture[str], damage: str
) -> None:
    checkpoints = cut_run(world, options(checkpoint_every=3, keep_checkpoints=9))
    last = checkpoints / "step-8"
    target = last / ("manifest.json" if damage == "manifest" else "optimizer.safetensors")
    content = bytearray(target.read_bytes())
    content[-1] ^= 1
    target.write_bytes(content[:-9] if damage == "truncate" else content)
    if damage in ("remove", "manifest"):
        target.unlink()
    before = (world.root / "run/train/checkpoints/step-6/model.safetensors").read_bytes()
    capfd.readouterr()
    world.run("run", options(checkpoint_every=3, keep_checkpoints=9))
    said = " ".join(capfd.readouterr().err.split())
    assert f"Skipping the checkpoint {last}" in said
    assert target.name in said
    assert "step-6: 6 of 8 steps are done" in said
    assert (world.root / "run/train/checkpoints/step-6/model.safetensors").read_bytes() == before


def fake_checkpoint(
    folder: Path, step: int, loss: float | None = None, keep: int = 1, state: dict[str, Any] | None = None
) -> None:
    model = torch.nn.Linear(2, 2)
    optimizer = StudentOptimizer([torch.optim.AdamW(model.parameters(), fused=True)])
    tensors = checkpoint.snapshot(WholeStudent(model), optimizer)
    checkpoint.write(folder, state or {"step": step, "heldout_loss": loss}, tensors, keep)


@pytest.mark.faults(23)
def test_rotation_keeps_the_latest_and_the_best(tmp_path: Path) -> None:
    losses = [5.0, 3.0, 4.0, None, 3.5, 3.2]
    kept = []
    for step, loss in enumerate(losses, 1):
        fake_checkpoint(tmp_path, step, loss, keep=1 + (step > 4))
        kept.append(sorted(int(path.name[5:]) for path in tmp_path.iterdir()))
    assert kept == [[1], [2], [2, 3], [2, 4], [2, 4, 5], [2, 5, 6]]


@pytest.mark.faults(23)
@given(st.lists(st.sampled_from([None, math.nan, math.inf, 1, 2, 3, 4]), min_size=1, max_size=6), st.integers(1, 3))
@settings(max_examples=50, deadline=None)
def test_rotation_never_deletes_the_best_or_the_latest(losses: list[float | None], keep: int) -> None:
    """So there is always one that is whole; a tie goes to the later one, and no more are kept than that."""
    with tempfile.TemporaryDirectory() as folder:
        for step, loss in enumerate(losses, 1):
            fake_checkpoint(Path(folder), step, loss, keep)
            measured = [(value, -at) for at, value in enumerate(losses[:step], 1) if value in (1, 2, 3, 4)]
            expected = {*range(max(1, step - keep + 1), step + 1), *(-at for _, at in sorted(measured)[:1])}
            assert {int(path.name.removeprefix("step-")) for path in Path(folder).iterdir()} == expected
            found = checkpoint.latest(Path(folder))
            assert found is not None
            assert found[1]["step"] == step


@pytest.mark.faults(4)
def test_a_full_disk_leaves_the_last_checkpoint_and_says_so(tmp_path: Path) -> None:
    fake_checkpoint(tmp_path, 1, 1.0, keep=1)
    before = {path: path.read_bytes() for path in (tmp_path / "step-1").iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, hard))
    try:
        with pytest.raises(CompressError, match=r"step-2 could not be written.*untouched"):
            fake_checkpoint(tmp_path, 2, 0.5, keep=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path: path.read_bytes() for path in (tmp_path / "step-1").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]
    assert checkpoint.latest(tmp_path) == (tmp_path / "step-1", {"step": 1, "heldout_loss": 1.0})


@pytest.mark.faults(23)
def test_the_best_is_by_the_measure_that_the_run_is_compared_by(tmp_path: Path) -> None:
    kls = [0.5, 0.2, 0.3, 0.4]
    for step, kl in enumerate(kls, 1):
        state = {"step": step, "heldout_loss": 5.0 - step, "heldout_kl": kl, "best_by": "heldout_kl"}
        fake_checkpoint(tmp_path, step, keep=1, state=state)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-2", "step-4"]


def test_a_run_begun_before_kl_was_measured_goes_on_by_what_it_minimises(
    world: World, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its states lack the fields, its log the column: the weights are the same, and so is what is best."""
    later = ("heldout_kl", "heldout_hard", "best_heldout_kl", "best_heldout_hard", "best_by")
    config = options(keep_checkpoints=1, alpha=0.3)
    world.run("whole", config)
    with monkeypatch.context() as patched:
        stop_at(patched, 4)
        with pytest.raises(InterruptedRun):
            world.run("cut", config)
    for path in (world.root / "cut/train/checkpoints").iterdir():
        state = json.loads((path / "state.json").read_text())
        (path / "state.json").write_text(json.dumps({k: v for k, v in state.items() if k not in later}))
        (path / "manifest.json").unlink()
        (path / "manifest.json").write_text(json.dumps({"sha256": sha256_tree(path)}))
    log = world.root / "cut/train/metrics.jsonl"
    rows = [{k: v for k, v in row.items() if k != "heldout_kl"} for row in world.metrics("cut")]
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = world.run("cut", config)
    assert weights(world, "cut") == weights(world, "whole")
    losses = {row["step"]: row["heldout_loss"] for row in world.metrics("cut") if "heldout_loss" in row}
    assert (result.best_by, result.best_heldout_loss) == ("heldout_loss", min(losses.values()))
    best = min((step for step in losses if step > 2), key=lambda step: losses[step])
    kept = {path.name for path in (world.root / "cut/train/checkpoints").iterdir()}
    assert kept == {"step-8", f"step-{best}"}
    assert result.heldout_kl == world.metrics("whole")[-1]["heldout_kl"]


def test_nothing_in_a_checkpoint_is_a_pickle(world: World, options: Options) -> None:
    folder = cut_run(world, options()) / "step-8"
    assert sorted(p.name for p in folder.iterdir()) == [
        "manifest.json", "model.safetensors", "optimizer.safetensors", "state.json",
    ]  # fmt: skip
    moments = load_file(folder / "optimizer.safetensors")
    assert {key.split("/")[0] for key in moments} == {"step", "exp_avg", "exp_avg_sq"}


def test_a_checkpoint_written_on_a_thread_is_that_of_its_step(
    world: World, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread is held up while training goes on; what it writes must be the weights of when it was asked to."""
    config = options(checkpoint_every=2, keep_checkpoints=9, heldout_every=0)
    world.run("sync", config)
    write_file, steps = checkpoint.save_file, []

    def slow(tensors: Any, file: Path) -> None:
        steps.append(1)
        time.sleep(0.3)
        write_file(tensors, file)

    monkeypatch.setattr(checkpoint, "save_file", slow)
    world.run("async", dataclasses.replace(config, async_checkpoints=True))
    assert len(steps) == 8
    for step in (2, 4, 6, 8):
        for file in ("model.safetensors", "optimizer.safetensors"):
            one, two = (world.root / name / f"train/checkpoints/step-{step}" / file for name in ("sync", "async"))
            assert one.read_bytes() == two.read_bytes(), (step, file)
    assert weights(world, "async") == weights(world, "sync")


@pytest.mark.faults(23)
def test_a_damaged_checkpoint_does_not_count_as_the_latest(tmp_path: Path) -> None:
    """With one to keep: the whole one that was written after the damage stays, and so does the run that has it."""
    for step in (2, 4, 6):
        fake_checkpoint(tmp_path, step, None, keep=9)
    (tmp_path / "step-6" / "model.safetensors").write_bytes(b"damaged")
    found = checkpoint.latest(tmp_path)
    assert found is not None
    assert found[0].name == "step-4"
    with checkpoint.Checkpointer(tmp_path, keep=1, background=False, done=4):
        assert sorted(path.name for path in tmp_path.iterdir()) == ["step-4", "step-6"]
    fake_checkpoint(tmp_path, 5, None, keep=1)
    found = checkpoint.latest(tmp_path)
    assert found is not None
    assert found[0].name == "step-5"
    fake_checkpoint(tmp_path, 6, None, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-6"]


@pytest.mark.faults(4)
def test_a_thread_that_cannot_write_ends_the_run(
    world: World, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = options(checkpoint_every=2, async_checkpoints=True)
    publish, calls = checkpoint.publish_folder, []

    def full(partial: Path, out: Path) -> None:
        calls.append(out.name)
        if out.name == "step-4":
            raise OSError(28, "No space left on device")
        publish(partial, out)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "publish_folder", full)
        with pytest.raises(CompressError, match="step-4 could not be written"):
            world.run("cut", config)
    assert calls == ["step-2", "step-4"]
    assert [path.name for path in (world.root / "cut/train/checkpoints").iterdir()] == ["step-2"]
    world.run("whole", config)
    world.run("cut", config)
    assert weights(world, "cut") == weights(world, "whole")


@pytest.mark.faults(1, 3)
def test_killed_while_a_thread_writes(world: World, options: Options) -> None:
    config = options(checkpoint_every=2, async_checkpoints=True)
    killed(world, "cut", config, "compress.distill.loop.checkpoint:save_file", 4)
    names = sorted(path.name for path in (world.root / "cut/train/checkpoints").iterdir())
    assert names == ["step-2", "step-4.partial"]
    world.run("whole", config)
    world.run("cut", config)
    assert weights(world, "cut") == weights(world, "whole")
