"""What earlier runs, in folders beside a run's, lead one to expect of it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from compress.base.errors import CompressError
from compress.base.units import format_count
from compress.report.judge.forecast import NoForecast, fit_forecast, full_rate_points
from compress.report.run_files import read_measures
from compress.run.recipe import Recipe, is_resolved, load_recipe

_NAMES = {"heldout_kl": "KL", "heldout_hard": "loss"}


def expected(recipe: Recipe, run: Path, tokens: float) -> Iterator[str]:
    """A line for each finished run in the folder of `run`, itself among them, of the same teachers, student and cuts:
    its held-out measure carried on to so many tokens, or why that cannot be said."""
    folders = sorted(path for path in run.absolute().parent.glob("*") if is_resolved(path / "recipe.yaml"))
    for folder in folders:
        try:
            found = load_recipe(folder / "recipe.yaml")
            record, rows = read_measures(folder)
        except CompressError:  # another version's, or damaged: no help, and no fault of this recipe
            continue
        measure = str((record or {}).get("best_by"))
        if record is None or _begins_with(found) != _begins_with(recipe) or measure not in _NAMES:
            continue
        told = f"  {folder.name}: {format_count(record['tokens'])} tokens, held-out {_NAMES[measure]}"
        told += f" {record[measure]:.4f}" if record.get(measure) is not None else ""
        try:
            config = (record.get("manifest") or {}).get("config") or {}
            value, low, high = fit_forecast(*full_rate_points(rows, measure, config, record["steps"])).at(tokens)
        except NoForecast as why:
            yield f"{told}; no forecast: {why}"
        else:
            yield f"{told}; {value:.4f} ({low:.4f} to {high:.4f}) expected after {format_count(tokens)}"


def _begins_with(recipe: Recipe) -> list[Any]:
    """What a run's last training starts from, and whom it learns from."""
    *earlier, last = recipe.chain
    cuts = [(stage.prune, stage.distill, stage.teacher) for stage in earlier]
    return [recipe.teacher, recipe.trim, recipe.student, cuts, last.prune, last.teacher, last.distill.mixture]
