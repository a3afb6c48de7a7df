"""`compress sweep`: a recipe with a `sweep` in, its runs and their page out."""

from pathlib import Path

import click

from compress.cli.options import flops_option, json_option, redo_option, set_option
from compress.cli.results import print_result, print_sweep


@click.command(short_help="Run a recipe's sweep and set its students side by side.")
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the sweep; runs/NAME when absent.")
@set_option
@redo_option
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    metavar="N",
    help="Processes to spread the students over; one for each GPU when absent.",
)
@click.option("--dry-run", is_flag=True, help="List the runs, what they share, which process makes them, and hours.")
@flops_option
@json_option
def sweep(
    recipe: Path,
    out: Path | None,
    overrides: tuple[str, ...],
    redo: tuple[str, ...],
    processes: int | None,
    dry_run: bool,
    flops_per_s: int,
    as_json: bool,
) -> None:
    """Run the `sweep` of RECIPE: a grid of values, or a list of cases, over any keys.

    Students that learn from the same rows are trained side by side on one forward pass of the teacher, and spread over
    the machine's GPUs. Run again: what is done is skipped, what was cut goes on; `compress run
    OUT/runs/CASE/recipe.yaml --out OUT/runs/CASE` continues one alone.
    """
    from compress.run.recipe import load_recipe
    from compress.sweep.sweep import describe, plan_sweep, run_sweep

    loaded = load_recipe(recipe, overrides)
    if dry_run:
        plan = plan_sweep(loaded, out, flops_per_s=flops_per_s, processes=processes)
        print_result(plan, describe(plan), as_json)
        return
    print_sweep(run_sweep(loaded, out, redo=redo, processes=processes), as_json)
