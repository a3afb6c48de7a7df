"""The house rules that a tool can check: format, lint, strict types over all four packages."""

import re
import subprocess
import sys

from helpers import ROOT

PACKAGES = ("compress", "prune", "distill", "evaluate")


def test_ruff_finds_nothing() -> None:
    for command in (["check", "--no-cache"], ["format", "--check", "--no-cache"]):
        done = subprocess.run([sys.executable, "-m", "ruff", *command, "."], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_mypy_strict_passes_and_sees_every_source_file() -> None:
    done = subprocess.run([str(ROOT / ".ci" / "typecheck")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    checked = re.search(r"no issues found in (\d+) source files", done.stdout)
    assert checked is not None
    files = [path for name in PACKAGES for path in (ROOT / name).rglob("*.py")]
    assert len(files) > 80
    assert int(checked[1]) >= len(files)
