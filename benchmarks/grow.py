"""Every size between a healed student and its teacher, beside cuts of the same size.

    python benchmarks/grow.py --teacher DIR --student RUN/student --layers 20 22 24 26 28 \
        --calibration SOURCE --text STORE --other-text SOURCE --out runs/grow

Models are grown by measure (kl-greedy), and from the last and the first block; cuts of as many layers are made by
kl-greedy on the same text, plain and repaired. All are measured on the same held-out rows and on other text. Several
`--student`, healed with other seeds, are averaged, half their range in brackets. `--out` keeps what is done, so a rerun
does what is missing; `grow.md` has the table.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

from compress.base.units import parse_count
from compress.evaluate import EvalConfig, evaluate_model
from compress.prune import GrowConfig, RankingConfig, RepairConfig, grow_family, prune

_ORDERS = ("kl-greedy", "last", "first")
_CUTS = ("cut", "cut, repaired")


def main() -> None:
    """Make and measure what is missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True, help="a folder")
    parser.add_argument("--student", type=Path, nargs="+", required=True, help="healed cuts of it, of one size")
    parser.add_argument("--layers", type=int, nargs="+", required=True)
    parser.add_argument("--calibration", required=True, metavar="SOURCE")
    parser.add_argument("--calibration-tokens", type=parse_count, default=4096)
    parser.add_argument("--repair-tokens", type=parse_count, default=65_536)
    parser.add_argument("--text", type=Path, required=True, help="a token store, whose held-out rows are measured")
    parser.add_argument("--other-text", metavar="SOURCE")
    parser.add_argument("--heldout", type=int, default=50, help="rows")
    parser.add_argument("--orders", nargs="+", choices=_ORDERS, default=list(_ORDERS))
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16"), help="to measure in")
    parser.add_argument("--no-repair", action="store_true", help="leave repaired cuts out")
    parser.add_argument("--out", type=Path, default=Path("runs/grow"))
    options = parser.parse_args()
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for name, size, folder in models(options):
        found.setdefault((name, size), []).append(measure(options, folder))
        (options.out / "grow.md").write_text(table(found))
    sys.stdout.write(table(found))


def models(options: argparse.Namespace) -> Iterator[tuple[str, int, Path]]:
    """What is made, its layers, and where it is."""
    for number, student in enumerate(options.student):
        yield "healed student", layers_of(student), student
        for order in options.orders:
            family = options.out / f"grown-{order}-{number}"
            if not family.is_dir():
                text = {"calibration": options.calibration, "calibration_tokens": options.calibration_tokens}
                grow_family(
                    student, options.teacher, family, GrowConfig(by=order, layers=tuple(options.layers), **text)
                )
            yield from ((f"grown, {order}", size, family / str(size)) for size in sorted(options.layers))
    for name in _CUTS[: 1 if options.no_repair else 2]:
        for size in sorted(options.layers):
            folder = options.out / f"{name.replace(', ', '-')}-{size}"
            if not folder.is_dir():
                cut(options, folder, size, repaired=name != "cut")
            yield name, size, folder


def cut(options: argparse.Namespace, out: Path, size: int, *, repaired: bool) -> None:
    """The teacher's cut of that size by kl-greedy."""
    text = {"calibration": options.calibration, "calibration_tokens": options.calibration_tokens}
    repair = RepairConfig(calibration=options.calibration, repair_tokens=options.repair_tokens) if repaired else None
    prune(options.teacher, out, RankingConfig(layers=size, by="kl-greedy", **text), repair=repair)


def layers_of(model: Path) -> int:
    """How many layers a model has."""
    return int(json.loads((model / "config.json").read_text())["num_hidden_layers"])


def measure(options: argparse.Namespace, model: Path) -> dict[str, Any]:
    """KL from the teacher and loss, on held-out rows and on other text."""
    path = options.out / "measured" / f"{'-'.join(model.parts[-3:])}.json"
    if not path.is_file():
        parts: dict[str, Any] = {"speed": False, "samples": 0, "responses": 0, "dtype": options.dtype}
        config = EvalConfig(heldout_sequences=options.heldout, other_text=options.other_text, **parts)
        result = evaluate_model(model, config, teacher=options.teacher, text=options.text)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({part: result[part] for part in ("fidelity", "heldout", "other_text")}, indent=1))
    measured: dict[str, Any] = json.loads(path.read_text())
    return measured


def table(found: dict[tuple[str, int], list[dict[str, Any]]]) -> str:
    """A row for each model: KL and loss ± standard errors over documents; means over students, half their range in
    brackets."""
    lines = ["| model | layers | KL | loss | KL, other text | loss, other text |", "|---|---|---|---|---|---|"]
    for (name, size), measured in found.items():
        cells = []
        for place in ("", "other_text"):
            each = [found[place] if place else found for found in measured]
            for part, key in (("fidelity", "kl_nats"), ("heldout", "loss_nats")):
                cells.append(_cell([(found or {}).get(part) for found in each], key))
        lines.append(f"| {name} | {size} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(parts: list[dict[str, Any] | None], key: str) -> str:
    values = [part[key] for part in parts if part is not None]
    if not values or parts[0] is None:
        return "–"
    spread = f" ({(max(values) - min(values)) / 2:.4f})" if len(values) > 1 else ""
    return f"{mean(values):.4f} ± {parts[0][f'{key}_stderr']:.4f}{spread}"


if __name__ == "__main__":
    main()
