"""The public contract: what users script against may grow, and nothing in it may be renamed."""

import inspect

import pytest

import compress
from compress.base.errors import CompressError, InputError, InterruptedRun, UsageError
from compress.cli import cli

OPTIONS = {
    "prune": {"teacher", "out", "--keep", "--layers", "--by", "--calibration", "--dry-run", "--json"},
    "distill": {"--teacher", "--student", "--data", "--out", "--tokens", "--alpha", "--temperature", "--set"},
    "eval": {"model", "--teacher", "--tasks", "--num-fewshot", "--limit", "--datasets-root", "--text", "--out"},
    "export": {"student", "out", "--format", "--push", "--dry-run", "--json"},
    "merge": {"models", "out", "--method", "--weights", "--base", "--density", "--dry-run", "--json"},
    "run": {"recipe", "--out", "--set", "--dry-run"},
    "report": {"run_dir"},
    "compare": {"models", "--out", "--json"},
    "verify": {"run_dir", "--data", "--json"},
    "demo": {"--out"},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_commands_keep_their_arguments_and_options(name: str) -> None:
    parameters = cli.commands[name].params
    assert {option for parameter in parameters for option in parameter.opts} >= OPTIONS[name]


def test_exit_codes() -> None:
    codes = [error.exit_code for error in (CompressError, UsageError, InputError, InterruptedRun)]
    assert codes == [1, 2, 3, 75]


def test_python_names() -> None:
    from compress.distill import distillation_loss
    from compress.evaluate import evaluate_model
    from compress.prune import prune

    loss = inspect.signature(distillation_loss).parameters
    assert list(loss)[:5] == ["student_hidden", "student_head", "teacher_hidden", "teacher_head", "labels"]
    defaults = {
        "alpha": 0.8,
        "temperature": 1.0,
        "divergence": "forward_kl",
        "ignore_index": -100,
        "chunk_tokens": None,
    }
    assert {name: loss[name].default for name in defaults} == defaults
    assert all(loss[name].kind is inspect.Parameter.KEYWORD_ONLY for name in defaults)
    assert list(inspect.signature(prune).parameters)[:3] == ["teacher", "out", "keep"]
    assert next(iter(inspect.signature(evaluate_model).parameters)) == "model"
    assert callable(compress.run_recipe)
