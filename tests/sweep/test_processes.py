"""A sweep's students spread over processes: the same bytes as of one, whoever is killed on the way."""

import json
import os
import signal
import time
from pathlib import Path

import psutil
import pytest
import torch
from commands import Running, warm
from helpers import run_cli
from recipe_world import make_run_world

from compress.base.disk import read_json, sha256_file
from compress.base.errors import UsageError
from compress.sweep.processes import number_of_processes, visible_gpu
from compress.sweep.split import spread

FOLDERS = [f"alpha-{alpha}_temperature-{temperature}" for alpha in (0.2, 0.8) for temperature in (1.0, 2.0)]
OPTIONS = (
    "--set=sweep={grid: {distill.alpha: [0.2, 0.8], distill.temperature: [1.0, 2.0]}}",
    "--set=distill.batch_tokens=128",
    "--set=distill.tokens=12k",
    "--set=distill.checkpoint_every=8",
    "--set=eval={heldout_sequences: 4, samples: 0}",
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run_world(tmp_path_factory.mktemp("world"))


def training_workers(running: Running, out: Path, since: float) -> list[psutil.Process]:
    """The two processes of a sweep, once both have saved a checkpoint since a time."""
    firsts = [out / "runs" / FOLDERS[0], out / "runs" / FOLDERS[2]]
    while running.poll() is None:
        saved = [list((first / "train" / "checkpoints").glob("step-*")) for first in firsts]
        if all(any(step.stat().st_mtime > since for step in steps) for steps in saved):
            break
        time.sleep(0.002)
    assert running.returncode is None, running.stderr.read_text()
    return sorted(psutil.Process(running.pid).children(), key=lambda child: child.create_time())


def test_two_processes_leave_the_bytes_of_one_whoever_is_killed(world: Path) -> None:
    one, two = world / "one", world / "two"
    alone = run_cli("sweep", str(world / "recipe.yaml"), "--out", str(one), *OPTIONS)
    assert alone.returncode == 0, alone.stderr
    command = ["sweep", str(world / "recipe.yaml"), "--out", str(two), *OPTIONS, "--processes=2"]

    started = time.time()
    stopped = warm().start((), *command)
    workers = training_workers(stopped, two, started)
    refused = run_cli(*command)
    assert refused.returncode == 2
    assert "Another process is writing" in refused.stderr
    stopped.terminate()
    assert stopped.wait().returncode == 75
    assert not any(worker.is_running() for worker in workers)

    started = time.time()
    killed = warm().start((), *command)
    workers = training_workers(killed, two, started)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    psutil.wait_procs(workers, timeout=60)
    assert not any(worker.is_running() for worker in workers)

    started = time.time()
    maimed = warm().start((), *command)
    training_workers(maimed, two, started)[0].kill()
    ended = maimed.wait()
    assert ended.returncode == 1
    assert "[2] Continuing from" in ended.stderr
    cases = read_json(two / "sweep.json")["cases"]
    assert ["SIGKILL" in (case["failed"] or "") for case in cases] == [True, True, False, False]
    assert [case.get("value") is None for case in cases] == [True, True, False, False]

    done = run_cli(*command, "--json")
    assert done.returncode == 0, done.stderr
    for folder in FOLDERS:
        for name in ("student/model.safetensors", "student-init/model.safetensors"):
            assert sha256_file(two / "runs" / folder / name) == sha256_file(one / "runs" / folder / name), name
        record = read_json(two / "runs" / folder / "student" / "distill.json")
        assert record["manifest"]["command"][:2] == ["compress", "sweep"]
    first, other = (read_json(out / "sweep.json") for out in (one, two))
    timed = {"seconds", "together"}
    for case, expected in zip(other["cases"], first["cases"], strict=True):
        assert {k: v for k, v in case.items() if k not in timed} == {
            k: v for k, v in expected.items() if k not in timed
        }
    assert other["curves"] == first["curves"]


def test_a_dry_run_says_who_makes_what(world: Path) -> None:
    """Two groups, of which only the one of four students can be split."""
    cases = [{"distill.alpha": alpha} for alpha in (0.2, 0.4, 0.6, 0.8)] + [{"distill.seed": 5}]
    options = ("--set", f"sweep={json.dumps({'cases': cases})}", "--out", str(world / "plan"), "--processes=3")
    planned = run_cli("sweep", str(world / "recipe.yaml"), *options, "--dry-run")
    assert planned.returncode == 0, planned.stderr
    found = [line.split(": ")[1].rpartition(", ")[0] for line in planned.stdout.splitlines()[:5]]
    of = [(1, 1), (1, 1), (1, 2), (1, 2), (2, 3)]
    assert found == [f"not made, group {group}, process {process}" for group, process in of]
    assert "5 runs in 2 groups, spread over 3 processes" in planned.stdout


def test_groups_stay_whole_where_there_are_enough_and_work_is_even() -> None:
    work = [1.0] * 10
    groups = [[0], [1, 2, 3], [4, 5], [6, 7]]
    assert spread(groups, work, 2) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert spread(groups, work, 4) == [[0], [1, 2, 3], [4, 5], [6, 7]]
    assert spread([[0, 1], [2]], [1.0, 1.0, 9.0], 2) == [[0, 1], [2]]
    assert spread([list(range(10))], work, 4) == [[0, 1], [2, 3, 4], [5, 6], [7, 8, 9]]
    assert spread([[0, 1, 2, 3], [4, 5]], work, 3) == [[0, 1], [2, 3], [4, 5]]
    assert spread([[0, 1], [2]], work, 8) == [[0], [1], [2]]
    assert spread([], work, 2) == []


def test_each_process_sees_one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert (number_of_processes(None), number_of_processes(3), visible_gpu(1)) == (1, 3, {})
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-6")
    assert (number_of_processes(None), number_of_processes(1)) == (2, 1)
    assert [visible_gpu(place)["CUDA_VISIBLE_DEVICES"] for place in range(2)] == ["4", "GPU-6"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert [visible_gpu(place)["CUDA_VISIBLE_DEVICES"] for place in range(2)] == ["0", "1"]
    with pytest.raises(UsageError, match="there are 2"):
        number_of_processes(3)
