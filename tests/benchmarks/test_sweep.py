"""benchmarks/sweep.py on a tiny pair: four students together are those of their single runs, for fewer FLOPs."""

import re
import subprocess
import sys
from pathlib import Path

from helpers import ROOT
from recipe_world import make_run_world


def test_the_table(tmp_path: Path) -> None:
    make_run_world(tmp_path)
    command = [sys.executable, str(ROOT / "benchmarks" / "sweep.py"), "--teacher=teacher", "--text=text.jsonl"]
    options = ["--tokens=1024", "--batch-tokens=256", "--seq-len=32", "--precision=fp32", "--rounds=1"]
    done = subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    row = re.search(r"\| 4 \| [0-9.]+ \| [0-9.]+ \| [0-9.]+ \| ([0-9.]+) \|", done.stdout)
    assert row is not None
    # a teacher of 4 layers and students of 2, which cost 3 forward passes: (C + 4 * 3 c) / (4 C + 4 * 3 c), c < C
    assert 0.5 < float(row[1]) < 0.8
