"""benchmarks/recovery.py on a tiny teacher: every kind of case, a rerun that measures nothing, and the page."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT, save_tiny_model


def measure(place: Path, *more: str) -> str:
    command = [sys.executable, str(ROOT / "benchmarks" / "recovery.py"), "teacher", "--out", "out", *more]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_every_kind_of_case_and_a_rerun(tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "teacher", num_hidden_layers=5, max_position_embeddings=512)
    rng = random.Random(0)
    for name, letters in (("text", "abcdefg ,."), ("other", "hijklmn ;:")):
        lines = [json.dumps({"text": "".join(rng.choices(letters, k=600))}) for _ in range(120)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    asked = [
        "--text",
        "text.jsonl",
        "--other",
        "other.jsonl",
        "--layers",
        "3",
        "--cuts",
        "block-influence",
        "alternate",
    ]
    asked += [
        "--recipes",
        "paper",
        "kl",
        "--tokens",
        "2048",
        "--batch-tokens",
        "1024",
        "--heldout",
        "8",
        "--pool",
        "8k",
    ]
    shown = measure(tmp_path, *asked, "--continuations")
    cases = {path.parent.name: json.loads(path.read_text()) for path in (tmp_path / "out").glob("*/case.json")}
    starts = [f"{cut}-3{repaired}" for cut in ("block-influence", "alternate") for repaired in ("", "-repaired")]
    healed = [f"{start}-{recipe}-2.05k-by-1.02k-0" for start in starts for recipe in ("paper", "kl")]
    assert set(cases) == {"teacher", *starts, *healed}
    for name in (*starts, *healed):
        case = cases[name]
        assert case["text"]["heldout_documents"] == 8
        assert case["text"]["kl_nats"] > 0 < case["other"]["kl_nats"]
        assert 0 <= case["tasks"]["continuation"]["value"] <= 1
        assert len(case["kept"]) == 3
    for name in healed:  # the curve ends where the evaluation, in float32 on the same rows, stands
        tokens, kl = cases[name]["curve"][-1]
        assert tokens == 2048
        assert kl == pytest.approx(cases[name]["text"]["kl_nats"], rel=1e-3)
    by_case, by_recipe = (table.strip().splitlines() for table in shown.split("\n\n"))
    assert (len(by_case), len(by_recipe)) == (2 + len(cases), 2 + len(healed))
    paper, kl = (cases[f"alternate-3-{recipe}-2.05k-by-1.02k-0"]["text"]["kl_nats"] for recipe in ("paper", "kl"))
    assert any(f"3, alternate | paper | 2.05k | 1 | {paper:.4f} ({paper - kl:+.4f})" in line for line in by_recipe)
    assert "<path" in (tmp_path / "out" / "results.svg").read_text()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*/*") if path.is_file()}
    assert measure(tmp_path, *asked, "--continuations") == shown
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert measure(tmp_path, "--report") == shown
