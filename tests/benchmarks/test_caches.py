"""benchmarks/caches.py on a tiny pair: hidden states give the live run again, and a rerun trains nothing."""

import json
import subprocess
import sys
from pathlib import Path

from helpers import ROOT
from recipe_world import make_pair_world


def measured(place: Path) -> str:
    options = ["--tokens=1024", "--batch-tokens=256", "--seq-len=32", "--heldout=4", "--precision=fp32", "--out=out"]
    models = ["--teacher=teacher", "--student=small", "--text=text.jsonl", "--other=text.jsonl"]
    kinds = ["--kinds", "hidden", "hidden, int8", "topk, k = 8"]
    command = [sys.executable, str(ROOT / "benchmarks" / "caches.py"), *models, *options, *kinds]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_table_and_a_rerun(tmp_path: Path) -> None:
    make_pair_world(tmp_path)
    shown = measured(tmp_path)
    cases = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "out").glob("*.json")}
    for seed in (0, 1):
        live = cases[f"live-{seed}"]
        assert cases[f"hidden-{seed}"]["text"] == live["text"]
        assert cases[f"topk-k8-{seed}"]["other"]["kl_nats"] != live["other"]["kl_nats"]
    assert cases["cache-hidden-int8"]["rounding_kl"] > 0
    lines = [line.split("|") for line in shown.splitlines()]
    (hidden,) = (cells for cells in lines if cells[1].strip() == "hidden")
    assert hidden[7].strip() == hidden[9].strip() == "+0.0000, +0.0000"
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("**/*.*") if path.suffix != ".md"}
    assert measured(tmp_path) == shown
    assert {path: path.stat().st_mtime_ns for path in before} == before
