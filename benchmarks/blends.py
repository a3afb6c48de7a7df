"""What a student keeps on each of several kinds of text: healed on a blend of them, and on each of them alone.

    python benchmarks/blends.py --teacher DIR --student CUT --sources books=DIR web=FILE instructions=FILE --tokens 16k

All trainings read as many tokens, and all students are measured on the same held-out rows of every source, beside the
student before. `--out` keeps what is done, so a rerun does what is missing; `blends.md` has the table.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path
from statistics import mean
from typing import Any

from compress.base.config import build_from
from compress.base.units import parse_count
from compress.data import DataConfig, TokenStore, prepare
from compress.data.store.blend import part_folder
from compress.distill import DistillConfig, distill
from compress.evaluate import EvalConfig, evaluate_model


def main() -> None:
    """Train and measure what is missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True, help="a folder")
    parser.add_argument("--student", type=Path, required=True, help="where each training starts")
    parser.add_argument("--sources", nargs="+", required=True, metavar="NAME=SOURCE")
    parser.add_argument("--tokens", type=parse_count, default=16_000, help="of each training, and in each source")
    parser.add_argument("--batch-tokens", type=parse_count, default=512)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--heldout", type=int, default=50, help="rows of each source")
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--alpha", type=float, default=1.0)
    parser.add_argument("--precision", default="auto", choices=("auto", "bf16", "fp32"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--out", type=Path, default=Path("runs/blends"))
    options = parser.parse_args()
    store = blend(options)
    texts = {"blend": store.path, **{name: part_folder(store.path, i) for i, name in enumerate(store.sources)}}
    found = {"before": [measure(options, "before", options.student, store)]}
    for seed in options.seeds:
        for name, text in texts.items():
            place = options.out / f"{name}-{seed}"
            student = lambda text=text, seed=seed, place=place: heal(options, text, seed, place)  # noqa: E731
            found.setdefault(name, []).append(measure(options, place.name, student, store))
            (options.out / "blends.md").write_text(table(found))
    sys.stdout.write(table(found))


def blend(options: argparse.Namespace) -> TokenStore:
    """All sources in equal parts, each enough for a training of its own."""
    sources = [dict(zip(("name", "dataset"), each.split("=", 1), strict=True)) for each in options.sources]
    settings = {
        "sources": sources,
        "tokens": len(sources) * (options.tokens + options.batch_tokens),
        "seq_len": options.seq_len,
        "heldout_sequences": len(sources) * options.heldout,
    }
    return prepare(build_from(DataConfig, settings), options.teacher, options.out / "data")


def heal(options: argparse.Namespace, text: Path, seed: int, place: Path) -> Path:
    """A student that is trained on one text."""
    settings = {name: getattr(options, name) for name in ("tokens", "batch_tokens", "lr", "alpha", "precision")}
    once = {"seed": seed, "heldout_sequences": 0, "checkpoint_every": 0}
    config = build_from(DistillConfig, {**settings, **once})
    distill(
        config, student=options.student, teacher=options.teacher, data=text, out=place / "student", work=place / "train"
    )
    shutil.rmtree(place / "train" / "checkpoints", ignore_errors=True)
    return place / "student"


def measure(options: argparse.Namespace, name: str, student: Any, store: TokenStore) -> dict[str, Any]:
    """KL from the teacher and loss on each source's held-out rows; `student` is a folder, or makes one."""
    path = options.out / f"{name}.json"
    if not path.is_file():
        config = EvalConfig(
            dtype="bfloat16" if options.precision == "bf16" else "auto",
            heldout_sequences=store.num_heldout,
            speed=False,
            samples=0,
            responses=0,
        )
        folder = student() if callable(student) else student
        result = evaluate_model(folder, config, teacher=options.teacher, text=store.path)
        path.write_text(json.dumps({part: result[part]["by_source"] for part in ("fidelity", "heldout")}, indent=1))
    measured: dict[str, Any] = json.loads(path.read_text())
    return measured


def table(found: dict[str, list[dict[str, Any]]]) -> str:
    """A row for what was trained on: KL on each source, ± its standard error over documents; means over seeds, half
    their range in brackets."""
    sources = list(found["before"][0]["fidelity"])
    lines = [
        "| trained on | " + " | ".join(f"KL, {name}" for name in sources) + " |",
        "|---" * (len(sources) + 1) + "|",
    ]
    for trained, seeds in found.items():
        cells = []
        for source in sources:
            values = [each["fidelity"][source]["kl_nats"] for each in seeds]
            error = seeds[0]["fidelity"][source]["kl_nats_stderr"]
            spread = f" ({(max(values) - min(values)) / 2:.4f})" if len(values) > 1 else ""
            cells.append(f"{mean(values):.4f} ± {error:.4f}{spread}")
        lines.append(f"| {trained} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
