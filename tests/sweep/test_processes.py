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


def checkpoints(out: Path) -> list[set[str]]:
    """The checkpoints of the first student of each of two processes."""
    folders = [out / "runs" / folder / "train" / "checkpoints" for folder in (FOLDERS[0], FOLDERS[2])]
    return [{path.name for path in folder.glob("step-*") if path.suffix == ""} for folder in folders]


def held_in_training(command: list[str], out: Path) -> tuple[Running, list[psutil.Process]]:
    """A sweep whose two processes are suspended, each after it saved a checkpoint of its own."""
    before, running = checkpoints(out), warm().start((), *command)
    held: dict[int, psutil.Process] = {}
    while len(held) < 2:
        assert running.poll() is None, running.stderr.read_text()
        for place, (now, then) in enumerate(zip(checkpoints(out), before, strict=True)):
            if place not in held and now - then:
                children = sorted(psutil.Process(running.pid).children(), key=lambda child: child.create_time())
                held[place] = children[place]
                held[place].suspend()
        time.sleep(0.002)
    return running, [held[0], held[1]]


def test_two_processes_leave_the_bytes_of_one_whoever_is_killed(world: Path) -> None:
    one, two = world / "one", world / "two"
    alone = run_cli("sweep", str(world / "recipe.yaml"), "--out", str(one), *OPTIONS)
    assert alone.returncode == 0, alone.stderr
    command = ["sweep", str(world / "recipe.yaml"), "--out", str(two), *OPTIONS, "--processes=2"]

    stopped, workers = held_in_training(command, two)
    refused = run_cli(*command)
    assert refused.returncode == 2
    assert "Another process is writing" in refused.stderr
    stopped.terminate()
    for worker in workers:
        worker.resume()
    assert stopped.wait().returncode == 75
    assert not any(worker.is_running() for worker in workers)

    killed, workers = held_in_training(command, two)
    for worker in workers:  # suspended ones would be ended by the system, with the process that began them
        worker.resume()
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive

    maimed, workers = held_in_training(command, two)
    workers[0].kill()
    workers[1].resume()
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
