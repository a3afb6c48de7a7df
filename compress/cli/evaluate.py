"""`compress eval`: a model in, its scores out."""

from pathlib import Path
from typing import Any

import click

from compress.base import processes
from compress.cli.flags import flag, flags
from compress.cli.options import json_option, set_option, trust_option
from compress.cli.results import print_result, print_summary

_CONFIG = "compress.evaluate:EvalConfig"


@click.command("eval", short_help="Score a model: benchmarks, held-out loss, fidelity, speed.")
@click.argument("model")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The JSON file to write.")
@click.option("--teacher", metavar="MODEL", help="Also measure fidelity to this model on --text.")
@flags(_CONFIG, "tasks", "num_fewshot")
@flag(_CONFIG, "chat_template", is_flag=True)
@flag(_CONFIG, "system", metavar="TEXT")
@flag(_CONFIG, "fewshot_as_multiturn", "--fewshot-as-multiturn/--no-fewshot-as-multiturn")
@flags(_CONFIG, "identity", "limit")
@flag(_CONFIG, "datasets_root", metavar="DIR", more="No network is needed then.")
@click.option("--text", metavar="SOURCE", help="Held-out text: a run's data/, or a SOURCE as in `distill --data`.")
@flag(_CONFIG, "other_text")
@flag(_CONFIG, "draft_tokens", metavar="N,N", more="Needs --teacher.")
@flag(_CONFIG, "speed_price_per_hour", "--price-per-hour", metavar="PRICE")
@trust_option
@set_option
@json_option
def evaluate(
    model: str,
    out: Path,
    teacher: str | None,
    text: str | None,
    overrides: tuple[str, ...],
    as_json: bool,
    **given: Any,
) -> None:
    """Score MODEL (a hub id, a folder or a GGUF file): benchmarks, held-out loss, fidelity, speed."""
    from compress.base.config import from_flags
    from compress.base.errors import UsageError
    from compress.base.progress import say
    from compress.evaluate import evaluate_model
    from compress.report.compare import compare_models
    from compress.run.options import EvalOptions

    config = from_flags(EvalOptions, {"eval": given}, overrides).eval
    if config.draft_tokens and teacher is None:
        raise UsageError("--draft-tokens are those of a draft for a teacher: name it (--teacher MODEL --text SOURCE).")
    scores = evaluate_model(model, config, teacher=teacher, text=text, out=out)
    if as_json:
        print_result(scores, "", as_json)
    elif processes.is_main():
        print_summary(compare_models([str(out)]), as_json)
        say(f"Wrote {out}.")
