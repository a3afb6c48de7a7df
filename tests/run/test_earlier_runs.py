"""The dry run says what finished runs beside a run's folder, of the same teacher and cut, lead one to expect."""

import json
from pathlib import Path

import pytest

from compress.run.earlier import expected
from compress.run.recipe import Recipe, load_recipe, write_recipe

RECIPE = "{{name: tiny, teacher: {{model: {teacher}}}, prune: {{keep: '{keep}'}}, data: {{dataset: text.jsonl}}}}"


def finished(folder: Path, keep: str, schedule: str, teacher: str = "big") -> Recipe:
    """Leave what a finished run leaves, whose held-out KL was 0.1 + 40 / sqrt(tokens)."""
    (folder / "student").mkdir(parents=True)
    (folder / "train").mkdir()
    (folder / "asked.yaml").write_text(RECIPE.format(teacher=teacher, keep=keep))
    recipe = load_recipe(folder / "asked.yaml")
    write_recipe(recipe, folder / "recipe.yaml")
    config = {"schedule": schedule, "warmup_fraction": 0.0, "alpha": 1.0}
    record = {
        "tokens": 1_000_000,
        "steps": 10,
        "best_by": "heldout_kl",
        "heldout_kl": 0.14,
        "manifest": {"config": config},
    }
    (folder / "student" / "distill.json").write_text(json.dumps(record))
    rows = [
        {"step": k, "tokens": 1e5 * k, "heldout_loss": 1.0, "heldout_kl": 0.1 + 40 * (1e5 * k) ** -0.5}
        for k in range(1, 11)
    ]
    (folder / "train" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return recipe


def test_only_runs_of_the_same_teacher_and_cut_count_and_each_says_why_not(tmp_path: Path) -> None:
    recipe = finished(tmp_path / "constant", "1::2", "constant")
    finished(tmp_path / "cosine", "1::2", "cosine")
    finished(tmp_path / "other-cut", "::2", "constant")
    finished(tmp_path / "other-teacher", "1::2", "constant", teacher="small")
    (tmp_path / "no-run").mkdir()
    constant, cosine = expected(recipe, tmp_path / "new", 4_000_000)
    assert constant.startswith("  constant: 1M tokens, held-out KL 0.1400; ")
    assert float(constant.partition("; ")[2].split()[0]) == pytest.approx(0.1 + 40 / 2000, abs=1e-3)
    assert constant.endswith("expected after 4M")
    assert "cosine: 1M tokens" in cosine
    assert "no forecast: the learning rate falls over the whole run (cosine)" in cosine
