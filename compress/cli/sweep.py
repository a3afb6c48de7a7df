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
@click.option("--dry-run", is_flag=True, help="List the runs, how they are grouped by what they share, and hours.")
@flops_option
@json_option
def sweep(
    recipe: Path,
    out: Path | None,
    overrides: tuple[str, ...],
    redo: tuple[str, ...],
    dry_run: bool,
    flops_per_s: int,
    as_json: bool,
) -> None:
    """Run the `sweep` of RECIPE: a grid of values, or a list of cases, over any keys.

    Students that learn from the same rows are trained side by side on one forward pass of the teacher. Run again: what
    is done is skipped, what was cut goes on; `compress run OUT/runs/CASE/recipe.yaml --out OUT/runs/CASE` continues one
    alone.
    """
    from compress.run.recipe import load_recipe
    from compress.sweep.sweep import describe, plan_sweep, run_sweep

    loaded = load_recipe(recipe, overrides)
    if dry_run:
        plan = plan_sweep(loaded, out, flops_per_s=flops_per_s)
        print_result(plan, describe(plan), as_json)
        return
    print_sweep(run_sweep(loaded, out, redo=redo), as_json)
