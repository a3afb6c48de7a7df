"""The script for a GPU, tried on this machine: each part runs, and one that fails or takes too long costs no other."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT

QUICK = ("step, eager", "loss", "evaluate", "profile", "recovery")


def smoke(out: Path, *options: str, **environment: str) -> dict[str, Any]:
    command = ["bash", "benchmarks/gpu.sh", "--smoke", *options]
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2"), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **threads, "PYTHON": sys.executable, "OUT": str(out), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads((out / "gpu.json").read_text())
    return found


def check(found: dict[str, Any], out: Path) -> None:
    assert [name for name, part in found.items() if "failed" in part] == []
    step = found["step, eager"]
    assert step["tokens/s"] > 0
    assert 0 < step["MFU"] <= 1
    assert step["skipped"] == 0
    errors = found["loss"]["errors"]
    assert all(max(each.values()) < 0.02 for each in errors.values())
    assert found["evaluate"]["speed"]["student"]["decode_tokens_per_s"] > 0
    for part in found["recovery"].values():
        if isinstance(part, dict):
            assert [tokens for tokens, _ in part["held-out KL by tokens"]] == [0, 1024, 2048, 3072, 4096]
    page = (out / "gpu.md").read_text()
    assert f"| step, eager | {step['tokens/s']} | {step['MFU']} |" in page
    assert "## recovery" in page


def test_the_quick_parts_on_this_machine(tmp_path: Path) -> None:
    found = smoke(tmp_path, "--only", *QUICK)
    assert set(found) == {"hardware", "build", *QUICK}
    check(found, tmp_path)


@pytest.mark.slow
def test_all_parts_on_this_machine(tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    found = smoke(tmp_path, GPU_TESTS_ON_CPU="1", GPU_SECONDS="1500")
    fp8 = found.pop("step, fp8 teacher, compiled")
    assert "needs a GPU of compute capability 8.9" in fp8["failed"]
    assert found["tests"]["exit"] == 0, found["tests"]
    for name in ("resume", "resume, deterministic"):
        assert found[name]["twice: same weights, moments"] == found[name]["cut: same weights, moments"] == [True, True]
    found |= smoke(tmp_path, "--only", "recovery")
    check(found, tmp_path)


def test_a_part_that_fails_or_takes_too_long_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gpu

    assert "stopped after 1 s" in gpu.run_part("build", tmp_path, smoke=True, limit=1.0)["failed"]
    missing = gpu.run_part("evaluate", tmp_path, smoke=True, limit=120.0)
    assert "failed" in missing
    assert gpu.page({"hardware": {"device": "X"}, "evaluate": missing}).startswith("# X\n")
