"""All of memory: the machine's, and what control groups leave of it."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from compress.base import machine
from compress.base.machine import Memory, host_memory, memory_of, total_memory
from compress.distill.fit import check_fit
from compress.prune.check import reason_to_skip

GIB = 2**30
NO_LIMIT_V1 = 9223372036854771712


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 64 GiB of which 48 are free, and an empty folder for its control groups."""
    monkeypatch.setattr(machine, "_GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "_OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=48 * GIB, total=64 * GIB))
    return tmp_path


def write_v2(group: Path, limit: int | str, **stat: int) -> None:
    group.mkdir(parents=True, exist_ok=True)
    (group / "memory.max").write_text(f"{limit}\n")
    (group / "memory.stat").write_text("".join(f"{name} {value}\n" for name, value in stat.items()))


def write_v1(group: Path, limit: int, **stat: int) -> None:
    group.mkdir(parents=True, exist_ok=True)
    (group / "memory.limit_in_bytes").write_text(f"{limit}\n")
    (group / "memory.stat").write_text("".join(f"{name} {value}\n" for name, value in stat.items()))


def test_without_groups_it_is_the_machines(groups: Path) -> None:
    assert host_memory() == memory_of(torch.device("cpu")) == Memory(48 * GIB, 64 * GIB)


def test_a_container_sees_its_own_group_as_the_root(groups: Path) -> None:
    """Files in the page cache (`file`, but for shared memory) can be given back, so they are free."""
    (groups / "own").write_text("0::/\n")
    write_v2(groups / "cgroup", 8 * GIB, anon=2 * GIB, file=5 * GIB, shmem=GIB)
    assert host_memory() == Memory(5 * GIB, 8 * GIB)


def test_of_nested_groups_the_tightest_counts(groups: Path) -> None:
    """A job's limit holds for what runs below it, and another process of the job may have used it up."""
    (groups / "own").write_text("0::/slurm/job_1/step_0\n")
    write_v2(groups / "cgroup/slurm", "max", anon=9 * GIB)
    write_v2(groups / "cgroup/slurm/job_1", 16 * GIB, anon=15 * GIB)
    write_v2(groups / "cgroup/slurm/job_1/step_0", 12 * GIB, anon=4 * GIB)
    assert host_memory() == Memory(GIB, 12 * GIB)


def test_version_1_has_another_layout(groups: Path) -> None:
    (groups / "own").write_text("9:cpu,cpuacct:/docker/a\n4:memory:/docker/a\n0::/\n")
    write_v1(groups / "cgroup/memory", NO_LIMIT_V1, total_rss=30 * GIB)
    write_v1(groups / "cgroup/memory/docker/a", 4 * GIB, rss=GIB, total_rss=GIB, total_cache=3 * GIB, total_shmem=0)
    write_v1(groups / "cgroup/cpu/docker/a", GIB, total_rss=GIB)  # not of memory
    assert host_memory() == Memory(3 * GIB, 4 * GIB)


def test_a_group_of_a_name_that_the_container_does_not_have(groups: Path) -> None:
    (groups / "own").write_text("4:memory:/docker/a\n")
    write_v1(groups / "cgroup/memory", 4 * GIB, total_rss=GIB)
    assert host_memory() == Memory(3 * GIB, 4 * GIB)


def test_nothing_is_left_when_more_is_used_than_allowed(groups: Path) -> None:
    (groups / "own").write_text("0::/\n")
    write_v2(groups / "cgroup", GIB, anon=2 * GIB)
    assert host_memory() == Memory(0, GIB)


def test_every_reader_sees_the_limit(
    groups: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """What would fit into the machine and not into its container: a check of a teacher, a training, a recipe's plan."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    (groups / "own").write_text("0::/\n")
    write_v2(groups / "cgroup", 8 * GIB, anon=2 * GIB)
    assert total_memory() == {"this machine": 8 * GIB}
    assert "6.00 GiB are free" in str(reason_to_skip(2 * GIB))
    assert reason_to_skip(GIB) is None
    plan = SimpleNamespace(
        memory_bytes={"weights": GIB}, total_bytes=7 * GIB, micro_batch_rows=1, memory_text=lambda: "weights 1 GiB"
    )
    config = SimpleNamespace(gradient_checkpointing=True, optimizer="adamw", shard="both")
    check_fit(config, lambda config: plan, torch.device("cpu"))  # type: ignore[arg-type,return-value]
    assert "6.00 GiB of cpu are free" in " ".join(capfd.readouterr().err.split())


def test_this_machine_has_memory() -> None:
    free, total = host_memory()
    assert 1 << 20 < free < total < 1 << 50


HOLES = """
import numpy as np, psutil
from compress.base.machine import give_back_memory, keep_freed_memory
assert keep_freed_memory()
resident = lambda: psutil.Process().memory_info().rss
before = resident()
blocks = [(np.ones(1 << 20), np.ones(1 << 10)) for _ in range(40)]  # 8 MiB that goes, 8 KiB that stays behind it
kept = [small for _, small in blocks]
del blocks
held = resident() - before
give_back_memory()
left = resident() - before
again = [np.ones(8 << 20) for _ in range(4)]
del again[1:]
print(held, left, resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_holes_between_blocks_in_use_are_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", HOLES], capture_output=True, text=True, check=True)
    held, left, later = map(int, done.stdout.split())
    assert held > 300 * 2**20
    assert left < 50 * 2**20
    assert later < left + 100 * 2**20  # one block of four is held, of 64 MiB
