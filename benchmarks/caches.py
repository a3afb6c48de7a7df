"""What a cache of the teacher costs, saves and changes: trainings from each kind beside the live one, on equal tokens.

    python benchmarks/caches.py --teacher DIR --student CUT --text CORPUS --other OTHER --tokens 16k --seeds 0 1

All trainings read the same rows in the same order; students are measured on held-out rows of `--text`, and `--other`.
Seconds are the processor's, whatever else the machine has to do; on a GPU wall time. Rows are read twice: first
with nothing of them in memory, then again. `--out` keeps what is done, so a rerun does what is missing; `caches.md` has
the table.
"""

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch

from compress.base.config import build_from
from compress.base.disk import write_json
from compress.base.units import format_bytes, parse_count
from compress.data import DataConfig, TokenStore, prepare
from compress.distill import CacheConfig, DistillConfig, distill
from compress.distill.teachers.cache import TeacherCache
from compress.distill.teachers.caching import make_cache
from compress.evaluate import EvalConfig, evaluate_model

KINDS: dict[str, dict[str, Any]] = {
    "live": {},
    "hidden": {"kind": "hidden"},
    "hidden, int8": {"kind": "hidden", "rows": "int8"},
    "samples, N = 50": {"kind": "samples"},
    "topk, k = 128": {"kind": "topk", "k": 128},
    "topk, k = 8": {"kind": "topk", "k": 8},
}
READ_ROWS = 4


def main() -> None:
    """Make, train and measure what is missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, required=True, help="a folder")
    parser.add_argument("--student", type=Path, required=True, help="where each training starts")
    parser.add_argument("--text", required=True, help="SOURCE to train and measure on")
    parser.add_argument("--other", help="SOURCE of another kind, to measure on")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--tokens", type=parse_count, default=16_000)
    parser.add_argument("--batch-tokens", type=parse_count, default=512)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--heldout", type=int, default=50, help="rows of each text")
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--precision", default="auto", choices=("auto", "bf16", "fp32"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--out", type=Path, default=Path("runs/caches"))
    options = parser.parse_args()
    kinds = list(dict.fromkeys(["live", *options.kinds]))
    store = text(options, options.text, options.tokens + options.batch_tokens, "data")
    other = None if options.other is None else text(options, options.other, options.seq_len, "other")
    made = {
        kind: once(options, f"cache-{slug(kind)}", lambda kind=kind: cached(options, kind, store)) for kind in kinds
    }
    found: dict[str, list[dict[str, Any]]] = {}
    for seed in options.seeds:
        for kind in kinds:
            name = f"{slug(kind)}-{seed}"
            work = lambda kind=kind, seed=seed, name=name: healed(options, kind, seed, store, other, name)  # noqa: E731
            found.setdefault(kind, []).append(once(options, name, work))
            (options.out / "caches.md").write_text(table(found, made))
    sys.stdout.write((options.out / "caches.md").read_text())


def text(options: argparse.Namespace, source: str, tokens: int, name: str) -> TokenStore:
    """Its token store."""
    config = DataConfig(dataset=source, tokens=tokens, seq_len=options.seq_len, heldout_sequences=options.heldout)
    return prepare(config, options.teacher, options.out / name)


def slug(kind: str) -> str:
    """Of a folder."""
    return kind.replace(",", "").replace(" = ", "").replace(" ", "-")


def once(options: argparse.Namespace, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `work` found, now or in an earlier run."""
    path = options.out / f"{name}.json"
    if not path.is_file():
        write_json(path, work())
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def cached(options: argparse.Namespace, kind: str, store: TokenStore) -> dict[str, Any]:
    """What it takes to make a kind of cache, and to read it."""
    if kind == "live":
        return {}
    start = seconds()
    cache = make_cache(
        build_from(CacheConfig, KINDS[kind]),
        training(options, 0, options.heldout),
        teacher=options.teacher,
        data=store.path,
        out=options.out / slug(kind),
    )
    taken = seconds() - start
    return {**cache.describe(), "seconds": taken, "tokens_per_s": [read(cache, store, cold) for cold in (True, False)]}


def read(cache: TeacherCache, store: TokenStore, cold: bool) -> float:
    """Tokens a second of wall time that its rows are read at, in a shuffled order."""
    for path in cache.path.glob("rows-*.bin") if cold else ():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    rows = np.random.default_rng(0).permutation(store.num_rows)
    start = time.perf_counter()
    for place in range(0, len(rows), READ_ROWS):
        some = rows[place : place + READ_ROWS]
        cache.sparse(some) if cache.is_sparse(some) else cache.states(some)
    return len(rows) * store.seq_len / (time.perf_counter() - start)


def seconds() -> float:
    """A clock: the processor's time, or wall time where a GPU does the work."""
    return time.perf_counter() if torch.cuda.is_available() else time.process_time()


def training(options: argparse.Namespace, seed: int, heldout: int = 0) -> DistillConfig:
    """By KL alone."""
    settings = {name: getattr(options, name) for name in ("tokens", "batch_tokens", "lr", "precision")}
    return build_from(
        DistillConfig, {**settings, "alpha": 1.0, "seed": seed, "heldout_sequences": heldout, "checkpoint_every": 0}
    )


def healed(
    options: argparse.Namespace, kind: str, seed: int, store: TokenStore, other: TokenStore | None, name: str
) -> dict[str, Any]:
    """A student that learned from this kind: its training's seconds, KL from the teacher and loss on both texts."""
    place, start = options.out / "runs" / name, seconds()
    distill(
        training(options, seed),
        student=options.student,
        teacher=options.teacher,
        data=store.path,
        out=place / "student",
        work=place / "train",
        cache=None if kind == "live" else options.out / slug(kind),
    )
    taken = seconds() - start
    shutil.rmtree(place / "train" / "checkpoints", ignore_errors=True)
    config = EvalConfig(
        dtype="bfloat16" if options.precision == "bf16" else "auto",
        heldout_sequences=options.heldout,
        other_text=None if other is None else str(other.path),
        speed=False,
        samples=0,
        responses=0,
    )
    measured = evaluate_model(place / "student", config, teacher=options.teacher, text=store.path)
    texts = {"text": measured, "other": measured["other_text"]}
    kept = {
        name: {**of["fidelity"], "loss": of["heldout"]["loss_nats"]} for name, of in texts.items() if of is not None
    }
    return {"seconds": taken, **kept}


def table(found: dict[str, list[dict[str, Any]]], made: dict[str, dict[str, Any]]) -> str:
    """A row for each kind: KL of every seed, beside the live run's of the same seed but in the first row."""
    head = ["taught by", "bytes a token", "on disk", "s to make", "tokens/s read, cold and warm", "s to train, of live"]
    lines = [*head, "KL, text", "same top token", "KL, other text"]
    rows = ["| " + " | ".join(lines) + " |", "|---" * len(lines) + "|"]
    for kind, seeds in found.items():
        live, cache = found["live"][: len(seeds)], made[kind]
        cells = ["", "", "", ""]
        if cache:
            speeds = ", ".join(f"{speed:,.0f}" for speed in cache["tokens_per_s"])
            cells = [
                f"{cache['bytes_per_token']:,.0f}",
                format_bytes(cache["bytes"]),
                f"{cache['seconds']:.0f}",
                speeds,
            ]
        ratio = mean(each["seconds"] / of["seconds"] for each, of in zip(seeds, live, strict=True))
        top = mean(each["text"]["top1_agreement"] for each in seeds)
        others = kl(seeds, live, "other", kind) if "other" in seeds[0] else "–"
        rows.append(
            "| "
            + " | ".join([kind, *cells, f"{ratio:.2f}", kl(seeds, live, "text", kind), f"{top:.1%}", others])
            + " |"
        )
    return "\n".join(rows) + "\n"


def kl(seeds: list[dict[str, Any]], live: list[dict[str, Any]], name: str, kind: str) -> str:
    """`0.3381, 0.3379 ± 0.011` of the live run; of others what they have more: `+0.0002, -0.0001`."""
    values = [each[name]["kl_nats"] for each in seeds]
    if kind == "live":
        return ", ".join(f"{value:.4f}" for value in values) + f" ± {seeds[0][name]['kl_nats_stderr']:.3f}"
    return ", ".join(f"{value - of[name]['kl_nats']:+.4f}" for value, of in zip(values, live, strict=True))


if __name__ == "__main__":
    main()
