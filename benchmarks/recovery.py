"""What a pretrained teacher's student keeps, by tokens and by seconds: cut x repair x recipe of training, some seeds.

    python benchmarks/recovery.py TEACHER --text DIR --other DIR --layers 24 --tokens 64k
    python benchmarks/recovery.py TEACHER --text DIR --layers 15 --tokens 256k --seeds 0 1 --tasks quick --report

Each student is measured against its teacher on held-out rows of `--text`, which it is calibrated and healed on, and of
`--other`, which it never sees: KL and agreement with standard errors over documents, and the tasks' scores. Everything
is kept in `--out` (runs/recovery-NAME), so a rerun measures only what is missing; `results.json`, `results.md` and
`results.svg` are written anew after each case. `--report` measures nothing.
"""

import argparse
import itertools
import json
import random
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from objective_recipes import OBJECTIVES, PARTS
from recovery_page import curves, page

from compress.base.config import build_from
from compress.base.machine import environment
from compress.base.progress import say
from compress.base.units import format_count, parse_count

CUTS = ("alternate", "block-influence", "kl-greedy")
RECIPES = {**OBJECTIVES, **PARTS}
ROWS = 256
_CUTS_AT = (0, 96, 120, 144, 168, 192)
_TASK = """
task: continuation
dataset_path: recovery/continuation
output_type: multiple_choice
test_split: test
doc_to_text: "{{text}}"
doc_to_choice: "{{options}}"
doc_to_target: answer
target_delimiter: ""
metric_list: [{metric: acc}]
"""


def main() -> None:
    """Measure what is missing, and write the page."""
    options = _options()
    options.out = options.out or Path("runs") / f"recovery-{options.teacher.name}"
    options.out.mkdir(parents=True, exist_ok=True)
    if not options.report:
        _measure(options)
    cases = [json.loads(path.read_text()) for path in sorted(options.out.glob("*/case.json"))]
    if not cases:
        raise SystemExit(f"{options.out} has no case yet.")
    (options.out / "results.json").write_text(json.dumps({"environment": environment(), "cases": cases}, indent=1))
    (options.out / "results.svg").write_text(curves(cases))
    (options.out / "results.md").write_text(page(cases))
    sys.stdout.write(page(cases))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher", type=Path)
    parser.add_argument("--text", help="what students are calibrated, healed and measured on")
    parser.add_argument("--other", help="text of another kind, to measure on")
    parser.add_argument("--layers", type=int, nargs="+", default=[24], help="how many stay")
    parser.add_argument("--cuts", nargs="+", default=CUTS, help="METHODs, or SPECs that keep as many layers")
    parser.add_argument("--repair", nargs="+", choices=("no", "yes"), default=("no", "yes"))
    parser.add_argument("--recipes", nargs="+", choices=(*RECIPES, "none"), default=("paper", "kl"))
    parser.add_argument("--tokens", type=parse_count, default=64_000, help="of training")
    parser.add_argument("--pool", type=parse_count, default=2_000_000, help="tokens that those are drawn from")
    parser.add_argument("--batch-tokens", type=parse_count, default=4096)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--heldout", type=int, default=128, help="held-out rows of each text, one a document")
    parser.add_argument("--points", type=int, default=4, help="of a training's curve, after its start; 0 draws none")
    parser.add_argument("--dtype", default="auto", choices=("auto", "bfloat16"), help="of evaluations")
    parser.add_argument("--precision", default="auto", choices=("auto", "bf16", "fp32"), help="of training")
    parser.add_argument("--tasks", nargs="*", default=[])
    parser.add_argument("--limit", type=int, help="items a task")
    parser.add_argument("--datasets-root")
    parser.add_argument(
        "--continuations", action="store_true", help="and which of four pieces of held-out text is next"
    )
    parser.add_argument("--out", type=Path)
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args()
    options.task_folder = None
    if not options.report and options.text is None:
        parser.error("--text is needed to measure")
    return options


def _measure(options: argparse.Namespace) -> None:
    from compress.data import DataConfig, prepare

    texts = {"text": options.text, "other": options.other}
    stores = {
        name: prepare(
            DataConfig(
                dataset=source,
                seq_len=ROWS,
                heldout_sequences=options.heldout,
                tokens=max(options.pool, options.tokens + 4 * ROWS) if name == "text" else ROWS,
            ),
            options.teacher,
            options.out / f"store-{name}",
        ).path
        for name, source in texts.items()
        if source is not None
    }
    if options.continuations:
        _write_continuations(options, stores["text"])
    _case(options, "teacher", {"cut": "none", "layers": None}, lambda: (options.teacher, {}), stores, None)
    pace = {"batch_tokens": options.batch_tokens, "lr": options.lr}
    for layers, cut, repair in itertools.product(options.layers, options.cuts, options.repair):
        start, facts = _cut(options, layers, cut, repair == "yes")
        if start is None:
            continue
        _case(options, start.name, facts, lambda start=start: (start, {}), stores, options.teacher)
        for recipe, seed in itertools.product([name for name in options.recipes if name != "none"], options.seeds):
            step = format_count(options.batch_tokens)
            name = f"{start.name}-{recipe}-{format_count(options.tokens)}-by-{step}-{seed}"

            def heal(start: Path = start, recipe: str = recipe, seed: int = seed, name: str = name) -> Any:
                return _heal(options, start, stores["text"], RECIPES[recipe], seed, options.out / name)

            _case(options, name, {**facts, "recipe": recipe, "seed": seed, **pace}, heal, stores, options.teacher)


def _write_continuations(options: argparse.Namespace, store: Path) -> None:
    """The task `continuation`, after HellaSwag: which of four pieces of a held-out document comes next?

    The others come later in the same document, so that what it is about gives nothing away.
    """
    from compress.data import TokenStore
    from compress.model.load import load_tokenizer

    tokenizer, opened = load_tokenizer(options.teacher), TokenStore.open(store)
    hub, tasks = options.out / "hub", options.out / "tasks"
    if not hub.exists():
        (hub / "recovery" / "continuation").mkdir(parents=True)
        tasks.mkdir()
        for organisation in Path(options.datasets_root).iterdir() if options.datasets_root else ():
            (hub / organisation.name).symlink_to(organisation.resolve())
        chance, items = random.Random(0), []
        for row in opened.heldout():
            text, *pieces = (
                tokenizer.decode(row[first:last], skip_special_tokens=True)
                for first, last in itertools.pairwise(_CUTS_AT)
            )
            order = chance.sample(range(4), 4)
            items.append({"text": text, "options": [pieces[i] for i in order], "answer": order.index(0)})
        content = "".join(json.dumps(item) + "\n" for item in items)
        (hub / "recovery" / "continuation" / "test.jsonl").write_text(content)
        (tasks / "continuation.yaml").write_text(_TASK)
    options.datasets_root, options.task_folder = str(hub), str(tasks)
    options.tasks = [*options.tasks, "continuation"]


def _cut(options: argparse.Namespace, layers: int, cut: str, repaired: bool) -> tuple[Path | None, dict[str, Any]]:
    """The cut student, repaired or not, and what is known of it; no folder where the SPEC keeps another number."""
    from compress.prune import RankingConfig, RepairConfig, prune
    from compress.prune.parts import METHODS

    ranked = cut in METHODS
    source = {"calibration": options.text}
    out = options.out / f"{cut.replace(':', '-').replace(',', '_')}-{layers}{'-repaired' if repaired else ''}"
    record = out / "prune.json"
    if not record.is_file():
        plain = out.with_name(out.name.removesuffix("-repaired")) / "prune.json"
        keep: Any = RankingConfig(by=cut, layers=layers, **source) if ranked else cut  # type: ignore[arg-type]
        if ranked and plain.is_file():  # ranked already
            keep = ",".join(map(str, json.loads(plain.read_text())["kept_layers"]))
        started = time.monotonic()
        prune(str(options.teacher), out, keep, repair=RepairConfig(**source) if repaired else None, check=False)
        (out / "seconds.json").write_text(json.dumps(time.monotonic() - started))
    found = json.loads(record.read_text())
    if len(found["kept_layers"]) != layers:
        shutil.rmtree(out)
        say(f"{cut} keeps {len(found['kept_layers'])} layers, not {layers}: left out.")
        return None, {}
    seconds = json.loads((out / "seconds.json").read_text())
    facts = {"cut": cut, "layers": layers, "repaired": repaired, "kept": found["kept_layers"], "cut_seconds": seconds}
    return out, facts


def _heal(
    options: argparse.Namespace, start: Path, store: Path, recipe: dict[str, Any], seed: int, out: Path
) -> tuple[Path, dict[str, Any]]:
    """The healed student, and how its held-out KL fell."""
    from compress.distill import DistillConfig, distill

    chosen = {
        "lr": options.lr,
        "tokens": options.tokens,
        "batch_tokens": options.batch_tokens,
        "seed": seed,
        "precision": options.precision,
        **({"heldout_every": 1 / options.points} if options.points else {"heldout_sequences": 0}),
        "checkpoint_every": 0,
        "log_every": 1,
    }
    config = build_from(DistillConfig, {**chosen, **recipe})
    result = distill(
        config, student=start, teacher=options.teacher, data=store, out=out / "student", work=out / "train"
    )
    rows = [json.loads(line) for line in (out / "train" / "metrics.jsonl").read_text().splitlines()]
    curve = [[row["tokens"], row["heldout_kl"]] for row in rows if row.get("heldout_kl") is not None]
    facts = {"tokens": result.tokens, "seconds": result.seconds, "tokens_per_s": result.tokens_per_s, "curve": curve}
    shutil.rmtree(out / "train" / "checkpoints", ignore_errors=True)
    return out / "student", facts


def _case(
    options: argparse.Namespace, name: str, facts: dict[str, Any], make: Any, stores: dict[str, Path], teacher: Any
) -> None:
    """Make a student and measure it, unless that is done."""
    from compress.evaluate import EvalConfig, evaluate_model

    place = options.out / name
    place.mkdir(exist_ok=True)
    if (place / "case.json").is_file():
        return
    say(f"== {name}")
    model, made = make()
    found: dict[str, Any] = {"name": name, **facts, **made}
    config = EvalConfig(
        tasks=list(options.tasks),
        limit=options.limit,
        dtype=options.dtype,
        datasets_root=options.datasets_root,
        task_folder=options.task_folder,
        other_text=str(stores["other"]) if "other" in stores else None,
        heldout_sequences=options.heldout,
        speed=False,
        samples=0,
        responses=0,
    )
    result = evaluate_model(model, config, teacher=teacher, text=stores["text"])
    for kind, measured in (("text", result), ("other", result["other_text"])):
        if measured is not None:
            held = {f"heldout_{name}": value for name, value in measured["heldout"].items()}
            figures = {**(measured["fidelity"] or {}), **held}
            found[kind] = {name: value for name, value in figures.items() if isinstance(value, int | float)}
    found["params"] = result["params"]
    if options.tasks:
        found["tasks"] = _scores(result)
    (place / "case.json").write_text(json.dumps(found, indent=1))


def _scores(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The leading metric of each task that was asked for."""
    found = {}
    for task, entry in result["tasks"].items():
        if (name := entry.get("primary")) is not None:
            found[task] = {"value": entry[name], "stderr": entry.get(f"{name}_stderr")}
    return found


if __name__ == "__main__":
    main()
