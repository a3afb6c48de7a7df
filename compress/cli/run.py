"""`compress run`: a recipe in, a run folder with its report out."""

from pathlib import Path

import click

from compress.cli.options import flops_option, json_option, redo_option, set_option
from compress.cli.results import print_report, print_result


@click.command(short_help="Do every step of a recipe and write its report.")
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Run folder; runs/NAME when absent.")
@set_option
@redo_option
@click.option(
    "--dry-run", is_flag=True, help="Show the plan: parameters, memory, tokens, FLOPs, hours, and what is done."
)
@flops_option
@json_option
def run(
    recipe: Path,
    out: Path | None,
    overrides: tuple[str, ...],
    redo: tuple[str, ...],
    dry_run: bool,
    flops_per_s: int,
    as_json: bool,
) -> None:
    """Do every step of RECIPE and write its report. Run again: what is done is skipped, what was cut goes on."""
    from compress.run.pipeline import run_recipe
    from compress.run.recipe import load_recipe

    loaded = load_recipe(recipe, overrides)
    if dry_run:
        from compress.run.plan import plan_run

        plan, outlook = plan_run(loaded, out, redo, flops_per_s=flops_per_s)
        if plan is not None:
            lines = [plan.describe(), "", *(f"{name}: {state}" for name, state in outlook.standing.items())]
            print_result({**plan.to_dict(), "steps": outlook.standing}, "\n".join(lines), as_json)
        outlook.refuse()
        return
    print_report(run_recipe(loaded, out, redo=redo), as_json)
