"""Whether to cut at once or in stages: recipes with `stages` beside one cut, on as many tokens in all.

    python benchmarks/chains.py --teacher DIR --text SOURCE --other SOURCE --chain 24 18 --tokens 16k --seeds 0 1

A cut is a number of layers, which `--by` chooses, or a SPEC. The ways: `once`, the last of `--chain` (or `--direct`)
of the teacher; `chain`, one after the other, each healed on its part of the tokens; `previous`, the same, each taught
by the student before; `self`, `once` on half the tokens, whose student then teaches the same cut anew on the other
half. All are measured on the same held-out rows and on another text. `--out` keeps what is done, so a rerun does what
is missing; `chains.md` has the table.
"""

import argparse
import shutil
import sys
from pathlib import Path
from statistics import mean
from typing import Any

from compress.base.config import build_from
from compress.base.disk import read_json
from compress.base.units import format_count, format_seconds, parse_count
from compress.run.layout import Layout
from compress.run.pipeline import run_recipe
from compress.run.recipe import Recipe

WAYS = ("once", "chain", "previous", "self")


def main() -> None:
    """Run what is missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True, help="a folder")
    parser.add_argument("--text", required=True, help="SOURCE to heal on, and to measure on held-out rows of")
    parser.add_argument("--other", help="SOURCE of another kind, to measure on")
    parser.add_argument("--chain", nargs="+", default=["24", "18"], metavar="LAYERS|SPEC")
    parser.add_argument("--direct", metavar="LAYERS|SPEC", help="the one cut, where the last of --chain is a SPEC")
    parser.add_argument("--by", default="kl-greedy", metavar="METHOD")
    parser.add_argument("--repair", action="store_true")
    parser.add_argument("--tokens", type=parse_count, default=64_000, help="of all stages of a way together")
    parser.add_argument("--batch-tokens", type=parse_count, default=1024)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--heldout", type=int, default=50, help="rows")
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--alpha", type=float, default=1.0)
    parser.add_argument("--precision", default="auto", choices=("auto", "bf16", "fp32"))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--out", type=Path, default=Path("runs/chains"))
    options = parser.parse_args()
    if options.direct is None and not options.chain[-1].isdigit():
        parser.error("a SPEC of --chain names layers of the student before: say with --direct which of the teacher's")
    made: dict[str, list[Path]] = {}
    for seed in options.seeds:
        for way in options.ways:
            run = options.out / f"{way}-{seed}"
            if not (run / "report.json").is_file():
                reuse(made, way, run)
                run_recipe(recipe(options, way, seed), run)
            made.setdefault(way, []).append(run)
            (options.out / "chains.md").write_text(table(made))
    sys.stdout.write(table(made))


def stages_of(options: argparse.Namespace, way: str) -> list[dict[str, Any]]:
    """The stages of a way, each on its equal part of the tokens."""
    direct, (first, *later) = cut(options, options.direct or options.chain[-1]), options.chain
    found = {
        "once": [direct],
        "chain": [cut(options, each) for each in options.chain],
        "previous": [cut(options, first), *(cut(options, each) | {"teacher": "previous"} for each in later)],
        "self": [direct, {"teacher": "self"}],
    }[way]
    return [stage | {"tokens": options.tokens // len(found)} for stage in found]


def cut(options: argparse.Namespace, asked: str) -> dict[str, Any]:
    """What a stage says of its cut."""
    return {"layers": int(asked), "by": options.by} if asked.isdigit() else {"keep": asked}


def recipe(options: argparse.Namespace, way: str, seed: int) -> Recipe:
    """The recipe of a way. Trainings of one run have seeds of their own, and those of two runs no common one."""
    healing = {name: getattr(options, name) for name in ("batch_tokens", "lr", "alpha", "precision")}
    return build_from(
        Recipe,
        {
            "name": f"{way}-{seed}",
            "teacher": {"model": str(options.teacher)},
            "prune": {"repair": options.repair},
            "data": {
                "dataset": options.text,
                "tokens": options.tokens + options.batch_tokens,
                "seq_len": options.seq_len,
                "heldout_sequences": options.heldout,
            },
            "distill": {**healing, "seed": 100 * seed, "heldout_sequences": options.heldout, "checkpoint_every": 0},
            "stages": stages_of(options, way),
            "eval": {
                "tasks": [],
                "dtype": "bfloat16" if options.precision == "bf16" else "auto",
                "heldout_sequences": options.heldout,
                "other_text": options.other,
                "speed": False,
                "samples": 0,
                "responses": 0,
            },
        },
    )


def reuse(made: dict[str, list[Path]], way: str, run: Path) -> None:
    """Copy what an earlier run made from the same settings: the text, and of the same way the first cut."""
    earlier = next((runs[0] for runs in made.values()), None)
    if earlier is not None and not (run / "data").exists():
        shutil.copytree(earlier / "data", run / "data")
    place = Path("student-init" if way == "once" else "stages/1/student-init")
    if way in made and not (run / place).exists():
        shutil.copytree(made[way][0] / place, run / place)


def table(made: dict[str, list[Path]]) -> str:
    """A row for each way: KL from the teacher, ± its standard error over documents; means over seeds, half their range
    in brackets; seconds of all healings."""
    lines = ["| way | layers | tokens | KL, held out | KL, other text | healing |", "|---|---|---|---|---|---|"]
    for way, runs in made.items():
        stages = [read_json(run / "report.json")["stages"] for run in runs]
        kept = ", ".join(str(len(stage["kept_layers"])) for stage in stages[0])
        tokens = format_count(sum(stage["tokens"] for stage in stages[0]))
        seconds = format_seconds(mean(sum(stage["seconds"] for stage in each) for each in stages))
        if way == "once":
            lines.append(f"| cut at once | {kept} | 0 | {nearness(runs[:1], 'student-init')} | – |")
        lines.append(f"| {way} | {kept} | {tokens} | {nearness(runs, 'student')} | {seconds} |")
    return "\n".join(lines) + "\n"


def nearness(runs: list[Path], model: str) -> str:
    """Two cells: KL on held-out rows, and on the other text."""
    found = [read_json(Layout(run).evaluation(model)) for run in runs]
    cells = []
    for part in (found, [each.get("other_text") or {} for each in found]):
        near = [each["fidelity"] for each in part if each.get("fidelity")]
        values = [each["kl_nats"] for each in near]
        spread = f" ({(max(values) - min(values)) / 2:.4f})" if len(values) > 1 else ""
        cells.append(f"{mean(values):.4f} ± {near[0]['kl_nats_stderr']:.4f}{spread}" if near else "–")
    return " | ".join(cells)


if __name__ == "__main__":
    main()
