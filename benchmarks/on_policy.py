"""What learning of its own text gives a student: acceptance and reverse KL on what it writes, and on held-out text.

    python benchmarks/on_policy.py --teacher DIR --student CUT --text SOURCE --steps 100

From one student, trainings of equal steps and about equal numbers of labels: on the text, and on what the student
writes (GKD with lambda 1), by several divergences. Rows are as long as a prompt and its rollout together; on the text a
step reads as many rows fewer as they have more labels. Each student then goes on from the same held-out prompts, at
temperature 1 with the same random numbers, and is compared with the teacher on what it wrote, and on the held-out rows
themselves. `--out` keeps what is done, so a rerun does what is missing; `on_policy.md` has the table.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from compress.base.config import build_from
from compress.data import DataConfig, TokenStore, prepare
from compress.distill import DistillConfig, distill
from compress.evaluate.text.language import heldout_scores
from compress.inference.decoding import end_tokens
from compress.inference.plain import generate_plainly
from compress.inference.readout import Checkpoint, load_checkpoint
from compress.inference.sampling import Sampler

ARMS: dict[str, tuple[bool, str]] = {
    "text, forward KL": (False, "forward_kl"),
    "text, reverse KL": (False, "reverse_kl"),
    "own text, forward KL": (True, "forward_kl"),
    "own text, reverse KL": (True, "reverse_kl"),
    "own text, generalised JS": (True, "generalised_js"),
}
"""By name: whether it learns of its own text, and by which divergence."""
COLUMNS = {
    "own, acceptance": ("own", "acceptance_rate"),
    "own, KL(student, teacher)": ("own_reverse", "kl_nats"),
    "held-out, acceptance": ("heldout", "acceptance_rate"),
    "held-out, KL(teacher, student)": ("heldout", "kl_nats"),
}
_SIDE_BY_SIDE = 32


def main() -> None:
    """Train and measure what is missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True, help="a folder")
    parser.add_argument("--student", type=Path, required=True, help="where each training starts")
    parser.add_argument("--text", required=True, help="a SOURCE")
    parser.add_argument(
        "--arms", nargs="+", choices=ARMS, default=[name for name in ARMS if name != "own text, forward KL"]
    )
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rows", type=int, default=8, help="rollouts a step")
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--prompts", type=int, default=100, help="held-out rows to go on from and to measure on")
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--precision", default="auto", choices=("auto", "bf16", "fp32"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--out", type=Path, default=Path("runs/on_policy"))
    options = parser.parse_args()
    store = text(options)
    found = {"before": [measured(options, "before", lambda: options.student, store)]}
    for seed in options.seeds:
        for name in options.arms:
            place = options.out / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"
            student = lambda name=name, seed=seed, place=place: train(options, name, seed, place, store)  # noqa: E731
            found.setdefault(name, []).append(measured(options, place.name, student, store))
            (options.out / "on_policy.md").write_text(table(found))
    sys.stdout.write(table(found))


def text(options: argparse.Namespace) -> TokenStore:
    """Rows of a prompt and a rollout, as many as a training on rollouts reads."""
    length = options.prompt_tokens + options.new_tokens
    settings = {
        "dataset": options.text,
        "tokens": options.steps * options.rows * length,
        "seq_len": length,
        "heldout_sequences": options.prompts,
    }
    return prepare(build_from(DataConfig, settings), options.teacher, options.out / "data")


def train(options: argparse.Namespace, arm: str, seed: int, place: Path, store: TokenStore) -> Path:
    """A student that is trained one way."""
    own, divergence = ARMS[arm]
    rows = options.rows if own else max(1, round(options.rows * options.new_tokens / (store.seq_len - 1)))
    settings: dict[str, Any] = {
        "alpha": 1.0,
        "divergence": divergence,
        "tokens": options.steps * rows * store.seq_len,
        "batch_tokens": rows * store.seq_len,
        "lr": options.lr,
        "precision": options.precision,
        "seed": seed,
        "heldout_sequences": 0,
        "checkpoint_every": 0,
    }
    if own:
        lengths = {"prompt_tokens": options.prompt_tokens, "new_tokens": options.new_tokens}
        settings["on_policy"] = {"fraction": 1.0, **lengths}
    distill(
        build_from(DistillConfig, settings),
        student=options.student,
        teacher=options.teacher,
        data=store.path,
        out=place / "student",
        work=place / "train",
    )
    shutil.rmtree(place / "train" / "checkpoints", ignore_errors=True)
    return place / "student"


def measured(options: argparse.Namespace, name: str, student: Callable[[], Path], store: TokenStore) -> dict[str, Any]:
    """What a student is like, from its file or anew; `student` makes its folder."""
    path = options.out / f"{name}.json"
    if not path.is_file():
        folder = student()
        found = measure(options, load_checkpoint(folder, dtype="float32"), store)
        record = folder / "distill.json"
        if record.is_file():
            made = json.loads(record.read_text())
            labels = made["tokens"] // store.seq_len * (store.seq_len - 1)
            found |= {
                "labels": made["on_policy"]["tokens"] if made["on_policy"] else labels,
                "seconds": made["seconds"],
            }
        path.write_text(json.dumps(found, indent=1))
    known: dict[str, Any] = json.loads(path.read_text())
    return known


def measure(options: argparse.Namespace, student: Checkpoint, store: TokenStore) -> dict[str, Any]:
    """Nearness to the teacher on what the student writes after held-out prompts, and on the held-out rows."""
    teacher = load_checkpoint(options.teacher, dtype="float32")
    rows, documents = store.heldout(options.prompts), store.heldout_documents(options.prompts)
    written, answers, share = write(options, student, rows)
    of_prompt = np.repeat(documents[:, :1], rows.shape[1], axis=1)
    on_own = {"documents": of_prompt, "answers": answers}
    kept = ("kl_nats", "kl_nats_stderr", "acceptance_rate", "acceptance_rate_stderr", "tokens", "documents")
    found = {
        "own": heldout_scores(student, written, 0, teacher=teacher, **on_own)[1],
        "own_reverse": heldout_scores(teacher, written, 0, teacher=student, **on_own)[1],
        "heldout": heldout_scores(student, rows, 0, documents=documents, teacher=teacher)[1],
    }
    return {**{name: {key: part[key] for key in kept} for name, part in found.items() if part}, "ended": share}


def write(options: argparse.Namespace, student: Checkpoint, rows: Any) -> tuple[Any, Any, float]:
    """The beginnings of rows [n, S] with what a student writes after them, which tokens [n, S] it wrote, and the share
    of rollouts that came to an end."""
    ends, written, answers = end_tokens(student.model, student.tokenizer), rows.copy(), np.zeros(rows.shape, np.bool_)
    ended = 0
    for first in range(0, len(rows), _SIDE_BY_SIDE):
        numbers = range(first, min(first + _SIDE_BY_SIDE, len(rows)))
        sampler = Sampler(1.0, 1.0, 0, [str(number) for number in numbers])
        prompts = [rows[number, : options.prompt_tokens] for number in numbers]
        found = generate_plainly(student.model, prompts, options.new_tokens, ends, sampler)
        for number, rollout in zip(numbers, found, strict=True):
            here = slice(options.prompt_tokens, options.prompt_tokens + len(rollout))
            written[number, here], answers[number, here] = rollout, True
            ended += rollout[-1] in ends
    return written, answers, ended / len(rows)


def table(found: dict[str, list[dict[str, Any]]]) -> str:
    """A row for each way: measures ± their standard errors over documents, of the first seed; means over seeds, half
    their range in brackets."""
    lines = [
        f"| learns of | labels | {' | '.join(COLUMNS)} | rollouts that end | s |",
        "|---" * (len(COLUMNS) + 4) + "|",
    ]
    for name, seeds in found.items():
        cells = [f"{mean(each['labels'] for each in seeds):,.0f}" if "labels" in seeds[0] else "–"]
        for part, key in COLUMNS.values():
            values, error = [each[part][key] for each in seeds], seeds[0][part][f"{key}_stderr"] or 0.0
            spread = f" ({(max(values) - min(values)) / 2:.4f})" if len(values) > 1 else ""
            cells.append(f"{mean(values):.4f} ± {error:.4f}{spread}")
        cells.append(f"{mean(each['ended'] for each in seeds):.0%}")
        cells.append(f"{mean(each['seconds'] for each in seeds):.0f}" if "seconds" in seeds[0] else "–")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
