"""A command's result is on stdout, as a plain table or as one JSON object; what it says meanwhile is on stderr."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from helpers import ROOT, run_cli
from recipe_world import make_run_world

from compress.cli import cli

COMMANDS = {
    "run": ["run", "{}/recipe.yaml", "--out", "{}/run"],
    "demo": ["demo", "--out", "{}/run"],
    "report": ["report", "{}/run"],
    "compare": ["compare", "{}/run/eval/teacher.json", "{}/run/eval/student.json", "--out", "{}/compared"],
    "eval": ["eval", "{}/teacher", "--text", "{}/run/data", "--out", "{}/scores.json", "--set", "eval.speed=false"],
}
PLACES = dict.fromkeys(COMMANDS, "{}/run/report.html") | {
    "compare": "{}/compared/compare.html",
    "eval": "{}/scores.json",
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, so that each command has little to do."""
    folder = make_run_world(tmp_path_factory.mktemp("world"))
    done = run_cli("run", str(folder / "recipe.yaml"), "--out", str(folder / "run"))
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def said(world: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> tuple[str, str]:
    """stdout and stderr of a command; neither is a terminal, though the environment asks for colours."""
    name, *more = request.param
    monkeypatch.setattr("compress.demo.RECIPE", world / "recipe.yaml")  # smaller than its own
    arguments = [argument.format(world) for argument in COMMANDS[name]]
    done = CliRunner().invoke(cli, [*arguments, *more], env={"FORCE_COLOR": "1", "HF_HUB_OFFLINE": "1"})
    assert done.exit_code == 0, done.output
    return done.stdout, done.stderr


@pytest.mark.parametrize(("name", "said"), [(name, [name]) for name in COMMANDS], indirect=["said"])
def test_the_table_is_on_stdout_as_plain_text(name: str, said: tuple[str, str], world: Path) -> None:
    table, messages = said
    assert "\x1b" not in table
    (losses,) = [line for line in table.splitlines() if line.strip().startswith("held-out loss ")]
    models = {"eval": 1, "compare": 2}.get(name, 3)
    figures = re.findall(r"([0-9.]+) ± ([0-9.]+)", losses)
    assert len([float(loss) + float(stderr) for loss, stderr in figures]) == models
    assert "held-out loss" not in messages
    assert PLACES[name].format(world) in messages
    assert PLACES[name].format(world) not in table


@pytest.mark.parametrize(("name", "said"), [(name, [name, "--json"]) for name in COMMANDS], indirect=["said"])
def test_json_is_all_there_is_on_stdout(name: str, said: tuple[str, str], world: Path) -> None:
    record = json.loads(said[0])
    teacher = {"eval": record, "compare": record.get("m0")}.get(name) or record["teacher"]
    measured = json.loads((world / "run" / "eval" / "teacher.json").read_text())["heldout"]["loss_nats"]
    assert teacher["heldout"]["loss_nats"] == pytest.approx(measured, rel=1e-6)


def test_a_table_goes_into_a_file(world: Path, tmp_path: Path) -> None:
    """With lines as long as they must be: names are longer than a terminal is wide."""
    names = [f"{'long ' * 12}{which}" for which in ("teacher", "student")]
    models = [f"{name}={world}/run/eval/{name.split()[-1]}.json" for name in names]
    with (tmp_path / "table.txt").open("w") as file:
        command = [sys.executable, "-m", "compress.cli", "compare", *models]
        done = subprocess.run(command, cwd=ROOT, stdout=file, stderr=subprocess.PIPE, text=True, env={**os.environ})
    assert (done.returncode, done.stderr) == (0, "")
    table = (tmp_path / "table.txt").read_text()
    assert "\x1b" not in table
    assert any(all(name in line for name in names) for line in table.splitlines())
