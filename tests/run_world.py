"""A recipe whose run takes seconds and has many steps and saves, and what two runs of it must have in common."""

import json
import random
from pathlib import Path
from typing import Any

from data_world import content
from fault_injection import Setting
from helpers import save_tiny_model
from recipe_world import write_benchmark

from compress.data import TokenStore
from compress.data.store import order

SMALL_STEPS = (
    Setting(name="compress.data.store.shards:SHARD_TOKENS", value=1024),
    Setting(name="compress.data.sources.stream:BATCH_CHARS", value=2000),
    Setting(name="compress.data.store.preparation:SAVE_EVERY_S", value=0.0),
)
"""Many shards and saves in the preparation of a text that is small."""

RECIPE = """
name: tiny
teacher: {{model: {folder}/teacher}}
prune: {{keep: alternate}}
data: {{dataset: {folder}/text, seq_len: 32, heldout_sequences: 4}}
distill: {{epochs: 2, batch_tokens: {batch_tokens}, lr: 3e-3, heldout_sequences: 4, heldout_every: 5, log_every: 1,
  checkpoint_every: 3}}
eval:
  tasks: [tiny_choice]
  task_folder: {folder}/tasks
  datasets_root: {folder}/hub
  heldout_sequences: 4
  speed_prompt_tokens: 8
  speed_decode_tokens: 2
  speed_repeats: 1
  samples: 1
  sample_tokens: 4
"""
_TIMES = frozenset({"tokens_per_s", "mfu", "peak_gib"})


def write_recipe(folder: Path, *, documents: int = 120, batch_tokens: int = 224) -> Path:
    """Write a teacher whose student has dropout, text in three files, a benchmark, and the recipe; returns its path."""
    save_tiny_model(folder / "teacher", num_hidden_layers=4, attention_dropout=0.1)
    rng = random.Random(0)
    names = ["ann", "bob", "cat", "dan"]
    lines = [f"{i}: {rng.choice(names)} saw {rng.choice(names)} and {rng.choice(names)}." for i in range(documents)]
    (folder / "text").mkdir()
    for i in range(3):
        rows = "".join(json.dumps({"text": line}) + "\n" for line in lines[i::3])
        (folder / "text" / f"{i}.jsonl").write_text(rows)
    items = [{"question": f"{i}: ann saw", "options": [" bob", " cat", "x"], "answer": i % 2} for i in range(8)]
    write_benchmark(folder, items)
    (folder / "recipe.yaml").write_text(RECIPE.format(folder=folder, batch_tokens=batch_tokens))
    return folder / "recipe.yaml"


def metrics(run: Path) -> list[dict[str, Any]]:
    """Rows of a run's metrics.jsonl without times, rates and memory."""
    rows = [json.loads(line) for line in (run / "train" / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in _TIMES} for row in rows]


def lasting(run: Path) -> dict[str, Any]:
    """Everything in a finished run that must not depend on what happened to it on the way."""
    prune, trained = (
        json.loads((run / name).read_text()) for name in ("student-init/prune.json", "student/distill.json")
    )
    found = {
        "student-init": prune["sha256"],
        "student": {path.name: path.read_bytes() for path in sorted((run / "student").glob("*.safetensors"))},
        "distill.json": {
            k: value for k, value in trained.items() if k in ("steps", "tokens", "skipped_steps") or "heldout" in k
        },
        "metrics": metrics(run),
    }
    for path in sorted((run / "eval").glob("*.items.jsonl")):
        found[path.name] = path.read_text()
    for name in ("teacher", "student-init", "student"):
        scores = json.loads((run / "eval" / f"{name}.json").read_text())
        found[f"eval of {name}"] = {k: scores[k] for k in ("params", "tasks", "heldout", "fidelity", "samples")}
    return found | {f"data/{name}": value for name, value in content(run / "data").items()}


def differences(found: Any, expected: Any, at: str = "") -> list[str]:
    """The places at which two values, nested in dicts and lists, differ."""
    if isinstance(found, dict) and isinstance(expected, dict):
        pairs = [(key, found.get(key), expected.get(key)) for key in sorted(found.keys() | expected.keys())]
    elif isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        pairs = [(str(i), *pair) for i, pair in enumerate(zip(found, expected, strict=True))]
    else:
        return [] if found == expected else [f"{at} is {str(found)[:60]} and not {str(expected)[:60]}"]
    return [place for key, *pair in pairs for place in differences(*pair, f"{at}/{key}")]


def rows_out_of_order(run: Path) -> tuple[int, list[str]]:
    """How many rows a finished run read, and the first step after which its own hash of them is not as it should be.

    The hash is recomputed from the order of the data alone, of which every epoch is checked to be a permutation.
    """
    record = json.loads((run / "student" / "distill.json").read_text())["manifest"]["config"]
    store, seed, epochs = TokenStore.open(run / "data"), record["seed"], record["epochs"]
    for epoch in range(epochs):
        if sorted(store.order(seed, epoch)) != list(range(store.num_rows)):
            return 0, [f"epoch {epoch} is no permutation of the rows"]
    batch, position, digest = record["batch_tokens"] // store.seq_len, 0, order.START
    hashed = [row for row in metrics(run) if "rows_sha256" in row]
    for row in hashed:
        count = min(batch, store.num_rows * epochs - position)
        digest = order.extend(digest, store.row_ids(position, count, seed=seed, epochs=epochs))
        position += count
        if row["rows_sha256"] != digest or row["tokens"] != position * store.seq_len:
            return position, [f"the rows of step {row['step']} are others, or in another order"]
    return position, []
