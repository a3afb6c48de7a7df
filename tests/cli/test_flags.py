"""Flags that stand for config fields: what is said of a field is said once."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from compress.base.config import from_flags
from compress.cli import cli
from compress.cli.flags import field_docs, flag
from compress.data import DataConfig
from compress.distill import DistillConfig
from compress.evaluate import EvalConfig
from compress.prune import PruneConfig
from compress.prune.parts import METHODS
from compress.run.init_config import InitConfig
from compress.run.options import DistillOptions, PruneOptions
from compress.run.recipe import Recipe

CONFIGS = (Recipe, PruneConfig, DataConfig, DistillConfig, EvalConfig, InitConfig)


@pytest.mark.parametrize("config", CONFIGS)
def test_every_field_of_a_config_has_a_docstring(config: Any) -> None:
    docs = field_docs(config)
    for field in dataclasses.fields(config):
        assert docs[field.name].strip(), field.name


def test_a_docstring_is_the_one_under_its_field() -> None:
    docs = field_docs(PruneConfig)
    assert docs["repair"].startswith("Change the block before each cut by least squares")
    assert docs["cast"].startswith("Store the weights in this dtype")  # of StorageConfig, which PruneConfig is one of


def shown(*arguments: str) -> str:
    done = CliRunner().invoke(cli, [*arguments, "--help"], env={"COLUMNS": "400"}, terminal_width=400)
    assert done.exit_code == 0, done.output
    return " ".join(done.stdout.split())


def test_help_is_the_docstring_with_placeholder_choices_and_default() -> None:
    assert "--by METHOD Measure of how much a layer matters" in shown("prune")
    assert f": {' | '.join(METHODS)}." in shown("prune")
    assert "--check / --no-check" in shown("prune")
    assert "[default: check]" in shown("prune")
    docs = field_docs(DistillConfig)
    assert f"--alpha NUMBER {docs['alpha']} [default: 0.8]" in shown("distill")
    assert f"--num-fewshot N {' '.join(field_docs(EvalConfig)['num_fewshot'].split())}" in shown("eval")


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("alpha", "0.25", 0.25),
        ("temperature", "2", 2.0),
        ("tokens", "1.5k", 1500),
        ("lr", "1e-4", 1e-4),
        ("seed", "7", 7),
        ("schedule", "wsd", "wsd"),
        ("trackers", "wandb, mlflow", ("wandb", "mlflow")),
    ],
)
def test_a_flag_is_set_by_another_name(field: str, text: str, value: Any) -> None:
    """The same config as with `--set distill.FIELD=VALUE`, or in a recipe."""
    found: list[Any] = []

    @click.command()
    @flag("compress.distill:DistillConfig", field)
    def command(**given: Any) -> None:
        found.append(from_flags(DistillOptions, {"data": {"dataset": "x"}, "distill": given}, []).distill)

    done = CliRunner().invoke(command, [f"--{field}", text])
    assert done.exit_code == 0, done.output
    setting = f"distill.{field}={json.dumps(value)}"
    assert found == [from_flags(DistillOptions, {"data": {"dataset": "x"}}, [setting]).distill]
    assert getattr(found[0], field) == value


def test_what_is_not_given_is_the_configs_own_default() -> None:
    assert from_flags(PruneOptions, {"prune": dict.fromkeys(("keep", "check", "stream"))}, []).prune == PruneConfig()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["prune", "M", "OUT", "--layers", "3", "--by", "depth"], "'--by': 'depth' is not one of"),
        (["distill", "--student", "S", "--data", "D", "--out", "OUT", "--alpha", "much"], "'--alpha': 'much' is not a"),
        (["eval", "M", "--out", "OUT", "--num-fewshot", "2.5"], "'--num-fewshot': '2.5' is not a valid integer"),
        (["eval", "M", "--out", "OUT", "--limit", "few"], "eval.limit"),
    ],
)
def test_a_value_of_the_wrong_kind_is_wrong_usage(arguments: list[str], says: str) -> None:
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code != 0
    assert says in (done.output or str(done.exception)) + str(done.exception)


@pytest.mark.parametrize("name", ["prune", "distill", "eval"])
def test_explaining_a_command_imports_neither_torch_nor_transformers(name: str, tmp_path: Path) -> None:
    script = f"import sys; from compress.cli import cli; cli(['{name}', '--help'], standalone_mode=False)\n"
    script += "assert not {'torch', 'transformers', 'datasets', 'lm_eval'} & sys.modules.keys()"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
