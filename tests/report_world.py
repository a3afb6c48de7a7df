"""A run folder as the steps leave it, with scores simulated from known probabilities."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from compress.evaluate.scores.answers import answer_summary

PAPER = {
    # task: (metric, chance, shots, items, teacher, cut, healed); the seed paper's scores
    "mmlu": ("acc", 0.25, 5, 14042, 0.313, 0.236, 0.247),
    "hellaswag": ("acc", 0.25, 0, 10042, 0.483, 0.262, 0.374),
    "agieval_en": ("acc", 0.216, 0, 2546, 0.215, 0.203, 0.228),
    "squad_completion_verbatim": ("completion", 0.0, 0, 2984, 0.400, 0.004, 0.205),
    "arc_challenge": ("acc", 0.25, 25, 1172, 0.363, 0.221, 0.177),
    "openbookqa": ("acc", 0.25, 0, 500, 0.296, 0.142, 0.138),
}
DEMO = {
    "demo_choice": ("acc", 0.25, 0, 400, 0.93, 0.31, 0.88),
    "demo_completion": ("completion", 0.0, 0, 400, 0.90, 0.02, 0.84),
}
STEMS = ("teacher", "student-init", "student")
ENVIRONMENT = {
    "seconds": 12.5,
    "peak_gib": 9.1,
    "versions": {"python": "3.11.7", "torch": "2.13.0", "lm-eval": "0.4.13"},
    "git_commit": "0123456789abcdef0123456789abcdef01234567",
    "hardware": {"cpu": "a CPU", "cpu_cores": 2, "memory_gib": 15.6, "gpus": []},
    "command": ["compress", "run"],
}


def simulate_items(name: str, task: tuple[Any, ...], seed: int) -> dict[str, list[dict[str, Any]]]:
    """Right or wrong per item; an item's difficulty is shared by the three models, so their answers correlate."""
    metric, chance, _, count, *abilities = task
    rng = np.random.default_rng(seed)
    difficulty = rng.normal(size=count)
    items = {}
    for stem, ability in zip(STEMS, abilities, strict=True):
        noise = rng.normal(size=count)
        order = np.argsort(difficulty + noise)
        right = np.zeros(count)
        right[order[: round(ability * count)]] = 1.0
        items[stem] = [
            {
                "task": name,
                "groups": [],
                "doc_id": index,
                "doc_sha256": hashlib.sha256(f"{name} {index}".encode()).hexdigest(),
                "metrics": {metric: float(value)},
                "chance": chance,
            }
            for index, value in enumerate(right)
        ]
    return items


def score(items: list[dict[str, Any]], task: tuple[Any, ...]) -> dict[str, Any]:
    values = np.array([item["metrics"][task[0]] for item in items])
    return {
        task[0]: values.mean(),
        f"{task[0]}_stderr": values.std(ddof=1) / np.sqrt(len(values)),
        "chance": task[1],
        "n": len(values),
        "num_fewshot": task[2],
        "primary": task[0],
    }


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, default=float))


def training_log(tokens: int, steps: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(7)
    rows: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        decay = (1 + 60 * step / steps) ** -0.55
        soft = 0.32 + 4.6 * decay + rng.normal() * 0.03
        hard = 2.93 + 4.4 * decay + rng.normal() * 0.04
        at = {"step": step, "tokens": tokens * step // steps}
        rows.append({**at, "loss": 0.8 * soft + 0.2 * hard, "soft": soft, "hard": hard, "lr": 3e-4, "grad_norm": 0.7,
                     "tokens_per_s": 60_000, "mfu": 0.41, "peak_gib": 38.2})  # fmt: skip
        if step % max(1, steps // 12) == 0:
            held = {"heldout_soft": 0.31 + 4.6 * decay, "heldout_hard": 2.92 + 4.4 * decay}
            rows.append({**at, "heldout_loss": 0.8 * held["heldout_soft"] + 0.2 * held["heldout_hard"], **held})
    return rows


def evaluation(stem: str, index: int, healed_loss: float) -> dict[str, Any]:
    loss = (2.431, 9.874, healed_loss)[index]
    speed = {
        "prefill_tokens_per_s": (41250.0, 72110.0, 72060.0)[index],
        "decode_tokens_per_s": (71.2, 131.9, 131.4)[index],
        "latency_ms_p50": (14.0, 7.6, 7.6)[index],
        "latency_ms_p95": (14.9, 8.1, 8.2)[index],
        "peak_gib": (3.42, 2.31, 2.31)[index],
        "device": "cuda",
        "dtype": "bfloat16",
    }
    near = {
        "kl_nats": (0, 6.92, 0.601)[index],
        "js_nats": (0, 0.52, 0.102)[index],
        "top1_agreement": (1, 0.08, 0.71)[index],
    }
    tails = (
        " the river, where the old mill still turns when the snow melts in spring.",
        " the the of of, and. the and, the in the",
        " the river, where the mill was built in the nineteenth century and is still there.",
    )
    prompts = ("The village lies in a narrow valley beside", "In 1912 the museum was moved from its first home near")
    return {
        "model": ("meta-llama/Llama-3.2-1B", "student-init", "student")[index],
        "params": (1_235_814_400, 749_242_368, 749_242_368)[index],
        "bytes": (2_471_645_608, 1_498_492_984, 1_498_492_984)[index],
        "tasks": {},
        "heldout": {
            "loss_nats": loss,
            "perplexity": float(np.exp(loss)),
            "bits_per_byte": loss / 3.1,
            "tokens": 204_700,
        },
        "fidelity": near if index else None,
        "speed": speed,
        "samples": [{"prompt": prompt, "continuation": tails[index]} for prompt in prompts],
        "versions": ENVIRONMENT["versions"],
        "seconds": 321.0,
        "manifest": {"config": {"tasks": ["mmlu"]}, "inputs": {"model": "ab" * 32}, "outputs": {}, **ENVIRONMENT},
    }


def make_run(folder: Path, tasks: dict[str, tuple[Any, ...]], *, name: str = "a run", layers: int = 16) -> Path:
    """Write every file a finished run has but the report."""
    log = training_log(2_200_000_000, 800)
    heldout = [row for row in log if "heldout_loss" in row]
    scored = {task: simulate_items(task, facts, seed) for seed, (task, facts) in enumerate(tasks.items())}
    for index, stem in enumerate(STEMS):
        record = evaluation(stem, index, heldout[-1]["heldout_hard"])
        record["tasks"] = {task: score(scored[task][stem], facts) for task, facts in tasks.items()}
        write_json(folder / "eval" / f"{stem}.json", record)
        write_lines(folder / "eval" / f"{stem}.items.jsonl", [item for task in tasks for item in scored[task][stem]])
    kept = list(range(1, layers, 2))
    dropped = [layer for layer in range(layers) if layer not in kept]
    manifest = {
        "config": {"keep": "alternate"},
        "inputs": {},
        "outputs": {"model.safetensors": "cd" * 32},
        **ENVIRONMENT,
    }
    prune = {
        "teacher": "meta-llama/Llama-3.2-1B",
        "kept_layers": kept,
        "dropped_layers": dropped,
        "keep": "alternate",
        "method": None,
        "scores": None,
        "sha256": {},
        "manifest": manifest,
    }
    write_json(folder / "student-init" / "prune.json", prune)
    distill = {
        "teacher": "meta-llama/Llama-3.2-1B",
        "student": "student-init",
        "tokens": 2_200_000_000,
        "steps": 4196,
        "heldout_loss": heldout[-1]["heldout_loss"],
        "best_heldout_loss": heldout[-1]["heldout_loss"],
        "skipped_steps": 3,
        "tokens_per_s": 61_022.0,
        "seconds": 36_052.0,
        "flops": 1.53e19,
        "mfu": 0.42,
        "manifest": manifest,
    }
    write_json(folder / "student" / "distill.json", distill)
    write_lines(folder / "train" / "metrics.jsonl", log)
    (folder / "recipe.yaml").write_text(f"name: {json.dumps(name)}\nteacher: {{model: meta-llama/Llama-3.2-1B}}\n")
    return folder


ITEMS = 1200
LETTERS = ["A", "B", "C", "D"]


def letter_items(
    right_share: float | None, *, seed: int, always: int | None = None, sure: float = 0.6
) -> list[dict[str, Any]]:
    """Items of four options; the model picks the right one with `right_share`, guesses (None), or picks `always`."""
    rng = np.random.default_rng(seed)
    gold = np.random.default_rng(0).integers(0, 4, size=ITEMS)
    ease = np.random.default_rng(1).random(ITEMS)
    items = []
    for index in range(ITEMS):
        knows = right_share is not None and 0.7 * ease[index] + 0.3 * rng.random() < right_share
        other = (gold[index] + rng.integers(1, 4)) % 4
        guess = int(rng.integers(0, 4)) if right_share is None else gold[index] if knows else other
        pick = guess if always is None else always
        p = np.full(4, (1 - sure) / 3)
        p[pick] = sure
        items.append(
            {
                "task": "letters", "groups": [], "doc_id": index, "doc_sha256": f"{index}", "chance": 0.25,
                "metrics": {"acc": float(pick == gold[index])}, "question": f"Question {index}?", "options": LETTERS,
                "log_likelihoods": np.log(p).tolist(), "choice": int(pick), "gold": [int(gold[index])],
            }
        )  # fmt: skip
    return items


def letters_run(folder: Path, *models: list[dict[str, Any]]) -> Path:
    """A run whose three models answered the task `letters` as given."""
    run = make_run(folder, {"letters": ("acc", 0.25, 5, ITEMS, 0.7, 0.3, 0.6)})
    for stem, items in zip(STEMS, models, strict=True):
        values = np.array([item["metrics"]["acc"] for item in items])
        path = run / "eval" / f"{stem}.json"
        record = json.loads(path.read_text())
        record["tasks"]["letters"] |= {"acc": values.mean(), "acc_stderr": values.std(ddof=1) / np.sqrt(ITEMS)}
        record["tasks"]["letters"]["answers"] = answer_summary(items)
        path.write_text(json.dumps(record))
        (run / "eval" / f"{stem}.items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    return run
