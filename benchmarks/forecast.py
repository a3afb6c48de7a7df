"""Whether forecasts of held-out measures hold: fitted on the first part of finished runs, set beside their ends.

    python benchmarks/forecast.py RUN RUN ... --part 0.33

RUN is a folder of `compress run` or `compress distill`. Of each, the measures at the full learning rate up to that part
of its tokens are fitted, and the 90% interval is compared with the last measure at that rate: of wsd the last before
the decay. Runs whose rate falls throughout have no forecast, and say so.
"""

import argparse
import sys
from pathlib import Path

from compress.base.units import format_count
from compress.report.judge.forecast import NoForecast, fit_forecast, full_rate_points
from compress.report.run_files import read_measures

_MEASURES = {"heldout_kl": "KL", "heldout_hard": "loss"}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--part", type=float, default=1 / 3, help="of the tokens, from the beginning, that is fitted")
    options = parser.parse_args()
    lines = [
        "| run | schedule | tokens | measure | points | expected, 90% interval | measured | covered |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for run in options.runs:
        lines += rows(run, options.part)
    sys.stdout.write("\n".join(lines) + "\n")


def rows(run: Path, part: float) -> list[str]:
    """The lines of a run, one a measure."""
    record, logged = read_measures(run)
    if record is None:
        return [f"| {run.name} | not finished | | | | | | |"]
    config = record["manifest"]["config"]
    head = f"| {run.name} | {config['schedule']} | {format_count(record['tokens'])}"
    made = []
    for measure, name in _MEASURES.items():
        try:
            tokens, values = full_rate_points(logged, measure, config, record["steps"])
            early = [i for i, at in enumerate(tokens) if at <= part * tokens[-1]]
            found = fit_forecast([tokens[i] for i in early], [values[i] for i in early])
        except NoForecast as why:
            made.append(f"{head} | {name} | | {why} | | |")
            continue
        value, low, high = found.at(tokens[-1])
        covered = "yes" if low <= values[-1] <= high else "no"
        interval = f"{value:.4f} [{low:.4f}, {high:.4f}]"
        made.append(f"{head} | {name} | {found.points} | {interval} | {values[-1]:.4f} | {covered} |")
    return made


if __name__ == "__main__":
    main()
