"""A recipe with on-policy steps: planned, run, reported and verified."""

from pathlib import Path

from helpers import run_cli
from recipe_world import make_run_world, run_to

from compress.base.disk import read_json
from compress.verify import verify_run

LEAN = ("eval.tasks=[]", "eval.speed=false", "eval.samples=0", "distill.tokens=4k")
OWN = "distill.on_policy={fraction: 0.5, prompt_tokens: 8, new_tokens: 12}"


def test_a_run_with_on_policy_steps(tmp_path: Path) -> None:
    world = make_run_world(tmp_path)
    changes = [f"--set={change}" for change in (*LEAN, OWN)]
    planned = run_cli("run", str(world / "recipe.yaml"), "--out", str(tmp_path / "run"), "--dry-run", *changes)
    assert "on-policy: 50% of the steps, in each a rollout a row of at most 12 tokens after 8" in planned.stdout
    run = run_to(tmp_path / "run", world / "recipe.yaml", *LEAN, OWN)
    own = read_json(run / "student" / "distill.json")["on_policy"]
    assert 0 < own["steps"] < read_json(run / "student" / "distill.json")["steps"]
    page = (run / "report.md").read_text()
    assert f"| On-policy steps | {own['steps']} |" in page
    assert f"| Tokens that the student wrote | {own['tokens']:,} |" in page
    assert "Tokens a second, writing" in page
    assert {check.status for check in verify_run(run)} <= {"ok", "not checked"}
