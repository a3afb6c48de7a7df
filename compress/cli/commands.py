"""The command line: flags in, the same configs as a recipe out. Everything heavy is imported inside commands."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from compress.base import processes
from compress.base.errors import InputError, UsageError
from compress.base.signals import ignore_signals, interrupt_on_signal
from compress.cli.exits import fail
from compress.model.remote_code import trusting

F = TypeVar("F", bound=Callable[..., Any])


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="compress")
@click.option("--debug", is_flag=True, help="Show the whole traceback when something fails.")
def cli(debug: bool) -> None:
    """Turn a Hugging Face causal LM into a smaller, faster one, and prove what it kept."""


def _set_option(function: F) -> F:
    return click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="A.B=V",
        help="Override one value, named as in a recipe; may be repeated.",
    )(function)


def _trust(context: click.Context, option: click.Parameter, trust: bool) -> None:
    context.with_resource(trusting(trust))


_trust_option = click.option(
    "--trust-remote-code",
    is_flag=True,
    expose_value=False,
    callback=_trust,
    help="Let models bring Python code of their own, which runs with all your rights: read it first.",
)
_redo_option = click.option(
    "--redo",
    multiple=True,
    metavar="STEP",
    help="Do prune, data, distill, eval, ... anew: what is there moves to OUT/old. May be repeated.",
)
_json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout, nothing else.")


@cli.command(short_help="Drop whole layers of a model.")
@click.argument("teacher")
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--keep",
    "keeps",
    metavar="SPEC",
    multiple=True,
    help="alternate | a slice 1::2 | a list 0,2,5-9 | uniform:N | contiguous:N.  [default: alternate] Given several "
    "times: a family of students, OUT/SPEC each (`_` for `:`), in one pass over the teacher.",
)
@click.option(
    "--preserve-pattern", is_flag=True, default=None, help="As many layers, but each type of layer by its share."
)
@click.option("--layers", metavar="N", help="Or keep the N layers that matter most, by --by.")
@click.option(
    "--by",
    metavar="METHOD",
    help="block-influence | angular | perplexity | perplexity-greedy | taylor | magnitude | random.",
)
@click.option(
    "--rank-after", metavar="TOKENS", help="Heal each candidate cut of --layers N so long, and keep the best."
)
@click.option(
    "--calibration", metavar="SOURCE", help="Text to measure layers on: as in `distill --data`, or a token store."
)
@click.option("--calibration-tokens", metavar="N", help="Tokens of it to measure on.  [default: 256k]")
@click.option("--repair", is_flag=True, default=None, help="Repair the cut by least squares on that text.")
@click.option(
    "--check/--no-check", default=True, show_default=True, help="Reload the student and compare it with the teacher."
)
@click.option("--cast", metavar="DTYPE", help="Store the weights as bfloat16, float16 or float32.")
@click.option(
    "--stream/--no-stream",
    default=None,
    help="Download only what the student keeps of a teacher on the hub (half of it for half the layers) and leave out "
    "the check, which needs all of it. By default: with --no-check, when nothing else needs the whole teacher and it "
    "is not in the local cache.",
)
@click.option("--dry-run", is_flag=True, help="Plan from config.json alone; write nothing.")
@_trust_option
@_set_option
@_json_option
def prune(
    teacher: str,
    out: Path,
    keeps: tuple[str, ...],
    preserve_pattern: bool | None,
    layers: str | None,
    by: str | None,
    rank_after: str | None,
    calibration: str | None,
    calibration_tokens: str | None,
    repair: bool | None,
    check: bool,
    cast: str | None,
    stream: bool | None,
    dry_run: bool,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Drop whole layers of TEACHER (a hub id or a folder) and write the student to OUT.

    Further settings go through --set: `--set prune.max_shard_size=2GB --set prune.batch_tokens=4096`.
    """
    from compress import prune as step
    from compress.base.config import from_flags
    from compress.run.recipe import PruneOptions

    flags = {
        "preserve_pattern": preserve_pattern,
        "layers": layers,
        "by": by,
        "rank_after": rank_after,
        "calibration": calibration,
        "calibration_tokens": calibration_tokens,
        "repair": repair,
        "check": check,
        "cast": cast,
        "stream": stream,
    }
    sections: dict[str, dict[str, Any]] = {"prune": flags}
    if rank_after and calibration:
        sections["data"] = {"dataset": calibration, "tokens": rank_after}
    family = [
        from_flags(PruneOptions, {**sections, "prune": {**flags, "keep": keep}}, overrides) for keep in keeps or (None,)
    ]
    options, choices = family[0], [each.prune.choice for each in family]
    asked = options.prune
    if dry_run:
        plans = [step.plan_prune(teacher, choice, asked.cast) for choice in choices]
        _print_all([plan.to_dict() for plan in plans], [plan.describe() for plan in plans], as_json)
        return
    choice, how = choices[0], asked.how
    if isinstance(choice, step.RankAfterConfig):
        from compress.run.rank_after import prune_ranked

        results = [prune_ranked(options, teacher=teacher, out=out)]
    elif len(choices) > 1:
        results = processes.on_main(lambda: step.prune_family(teacher, out, list(map(str, choices)), **how))
    else:
        results = processes.on_main(lambda: [step.prune(teacher, out, choice, **how)])
    _print_all([result.record for result in results], [result.describe() for result in results], as_json)


@cli.command(short_help="Heal a student from its teacher on text.")
@click.option("--student", required=True, metavar="MODEL", help="Where training starts: a folder or a hub id.")
@click.option(
    "--teacher", metavar="MODEL", help="The model to learn from: a folder or a hub id; not needed with --alpha 0."
)
@click.option(
    "--data",
    "source",
    required=True,
    metavar="SOURCE",
    help="hub:ORG/NAME[:CONFIG]; a file, folder or glob of parquet, arrow, jsonl(.gz, .zst) or txt; or a run's data/.",
)
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="Run folder: OUT/data, OUT/train, OUT/student."
)
@click.option(
    "--tokens", metavar="N", help="Training tokens, e.g. 40M; all of the data when absent; needed for hub data."
)
@click.option("--alpha", type=float, help="Weight of the soft loss; 1 - alpha is the hard loss's.  [default: 0.8]")
@click.option("--temperature", type=float, help="Of both softmaxes in the soft loss.  [default: 1.0]")
@_trust_option
@_set_option
@_json_option
def distill(
    student: str,
    teacher: str | None,
    source: str,
    out: Path,
    tokens: str | None,
    alpha: float | None,
    temperature: float | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Heal a student from its teacher on text. Run the same command again to resume.

    Further settings go through --set: `--set distill.lr=1e-4 --set data.seq_len=1024`.
    """
    from compress.base.config import build, given_flags
    from compress.run.pipeline import distill_text
    from compress.run.recipe import DistillOptions

    training = {"tokens": tokens, "alpha": alpha, "temperature": temperature}
    flags = {"data": {"dataset": source, "tokens": tokens}, "distill": training}
    given = given_flags(flags, overrides)
    options = build(DistillOptions, given)
    result = distill_text(options, student=student, teacher=teacher, run=out, given=given.data["data"])
    _print(result.to_dict(), result.describe(), as_json)


@cli.command("eval", short_help="Score a model: benchmarks, held-out loss, fidelity, speed.")
@click.argument("model")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The JSON file to write.")
@click.option("--teacher", metavar="MODEL", help="Also measure fidelity to this model on --text.")
@click.option(
    "--tasks",
    default="",
    metavar="A,B",
    help="lm-eval task names, with shots as in mmlu@5, and presets: paper | torchtune | quick.",
)
@click.option(
    "--num-fewshot", type=int, metavar="K", help="Shots for tasks named without; each task's own when absent."
)
@click.option(
    "--price-per-hour", type=float, metavar="PRICE", help="Of this machine: adds the cost of a million tokens."
)
@click.option("--limit", metavar="N", help="At most N items a task.")
@click.option(
    "--datasets-root", metavar="DIR", help="Benchmark data in DIR/ORG/NAME (`hf download` layout); no network."
)
@click.option("--text", metavar="SOURCE", help="Held-out text: a run's data/, or a SOURCE as in `distill --data`.")
@_trust_option
@_set_option
@_json_option
def evaluate(
    model: str,
    out: Path,
    teacher: str | None,
    tasks: str,
    num_fewshot: int | None,
    limit: str | None,
    datasets_root: str | None,
    text: str | None,
    price_per_hour: float | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Score MODEL (a hub id or a folder): benchmarks, held-out loss, fidelity, speed."""
    from compress.base.config import from_flags
    from compress.base.progress import console
    from compress.evaluate import evaluate_model
    from compress.report import summary
    from compress.report.compare import compare_models
    from compress.run.recipe import EvalOptions

    flags = {
        "tasks": [name.strip() for name in tasks.split(",") if name.strip()],
        "num_fewshot": num_fewshot,
        "limit": limit,
        "datasets_root": datasets_root,
        "speed_price_per_hour": price_per_hour,
    }
    config = from_flags(EvalOptions, {"eval": flags}, overrides).eval
    scores = evaluate_model(model, config, teacher=teacher, text=text, out=out)
    if not as_json and processes.is_main():
        console.print(summary(compare_models([str(out)])))
    _print(scores, f"Wrote {out}.", as_json)


@cli.command(short_help="Do every step of a recipe and write its report.")
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Run folder; runs/NAME when absent.")
@_set_option
@_redo_option
@click.option("--dry-run", is_flag=True, help="Show the plan: parameters, memory, tokens, FLOPs, hours.")
@click.option("--flops-per-s", metavar="RATE", default="400T", show_default=True, help="FLOPs a second, for the hours.")
@_json_option
def run(
    recipe: Path,
    out: Path | None,
    overrides: tuple[str, ...],
    redo: tuple[str, ...],
    dry_run: bool,
    flops_per_s: str,
    as_json: bool,
) -> None:
    """Do every step of RECIPE and write its report. Run again: what is done is skipped, what was cut goes on."""
    from compress.run.pipeline import resolve_paths, run_folder, run_recipe
    from compress.run.recipe import load_recipe

    loaded = load_recipe(recipe, overrides)
    if dry_run:
        from compress.run.plan import plan_recipe

        resolved = resolve_paths(loaded, run_folder(loaded, out))
        plan = plan_recipe(resolved, flops_per_s=_count(flops_per_s, "--flops-per-s"))
        _print(plan.to_dict(), plan.describe(), as_json)
        return
    _finish(run_recipe(loaded, out, redo=redo), as_json)


@cli.command(short_help="Write the report of a run again.")
@click.argument("run_dir", type=click.Path(path_type=Path))
@_json_option
def report(run_dir: Path, as_json: bool) -> None:
    """Write report.json, report.md and report.html of RUN_DIR from what its steps left there."""
    from compress.report import write_report

    processes.on_main(lambda: write_report(run_dir))
    _finish(run_dir, as_json)


@cli.command(short_help="Set evaluated models side by side.")
@click.argument("models", nargs=-1, required=True, metavar="A [B ...]")
@click.option("--out", type=click.Path(path_type=Path), help="Folder to write compare.html, .md and .json to.")
@_json_option
def compare(models: tuple[str, ...], out: Path | None, as_json: bool) -> None:
    """Set evaluated models side by side, each against the first, with intervals and paired tests.

    A and B are eval JSONs or run folders; NAME=A gives one a name.
    """
    from compress.base.progress import console
    from compress.report import summary
    from compress.report.compare import compare_models

    record = processes.on_main(lambda: compare_models(models, out))
    if as_json or not processes.is_main():
        _print(record, "", as_json)
        return
    console.print(summary(record))
    if out is not None:
        console.print(f"The comparison: {out / 'compare.html'}", markup=False, soft_wrap=True)


@cli.command(short_help="Check a run's files, inputs and data order.")
@click.argument("run_dir", type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path), metavar="DIR", help="Its token store, if not RUN_DIR/data.")
@_trust_option
@_json_option
def verify(run_dir: Path, data: Path | None, as_json: bool) -> None:
    """Check RUN_DIR against its own records: hashes, inputs, settings, checkpoints, data order, weights.

    One line a check: ok, FAILED or not checked, and why. Exits 3 if one failed. Nothing is written or downloaded.
    """
    from compress.verify import verify_run

    def check_all() -> None:
        checks = []
        for check in verify_run(run_dir, data):
            checks.append(check)
            if not as_json:
                click.echo(check.describe())
        failed = [check.name for check in checks if check.status == "FAILED"]
        if as_json:
            record = {"run": str(run_dir), "ok": not failed, "checks": [check.to_dict() for check in checks]}
            _print(record, "", as_json)
        if failed:
            raise InputError(f"{run_dir}: {len(failed)} of {len(checks)} checks failed: {', '.join(failed)}.")

    processes.on_main(check_all)


@cli.command(short_help="The whole way in minutes: no network, no GPU.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("runs/demo"), show_default=True, help="Run folder."
)
@_set_option
@_redo_option
@_json_option
def demo(out: Path, overrides: tuple[str, ...], redo: tuple[str, ...], as_json: bool) -> None:
    """The whole way on this machine in minutes: no network, no GPU, no model of your own."""
    from compress.demo import RECIPE
    from compress.run.pipeline import run_recipe
    from compress.run.recipe import load_recipe

    _finish(run_recipe(load_recipe(RECIPE, overrides), out, redo=redo), as_json)


def _finish(run_dir: Path, as_json: bool) -> None:
    from compress.base.disk import read_json
    from compress.base.progress import console
    from compress.report import summary

    if not processes.is_main():
        return
    record = read_json(run_dir / "report.json")
    if as_json:
        _print(record, "", as_json)
        return
    console.print(summary(record))
    console.print(f"The report: {run_dir / 'report.html'}", markup=False, soft_wrap=True)


def _print(record: Any, text: str, as_json: bool) -> None:
    if processes.is_main():
        click.echo(json.dumps(record, ensure_ascii=False) if as_json else text)


def _print_all(records: list[dict[str, Any]], texts: list[str], as_json: bool) -> None:
    """One record as it is, several as a list."""
    _print(records if len(records) > 1 else records[0], "\n\n".join(texts), as_json)


def _count(text: str, option: str) -> int:
    from compress.base.units import parse_count

    try:
        return parse_count(text)
    except ValueError as error:
        raise UsageError(f"{option}: {error}.") from error


def main() -> None:
    """Entry point: run the command and turn failures into one paragraph on stderr and an exit code."""
    debug = "--debug" in sys.argv[1:]
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a path may hold bytes that are no text
    interrupt_on_signal()
    try:
        cli(prog_name="compress", standalone_mode=False)
        processes.leave()
        ignore_signals()
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (Exception, KeyboardInterrupt) as error:
        fail(error, debug)


if __name__ == "__main__":
    main()
