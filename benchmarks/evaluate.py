"""`compress eval` beside lm-eval's own command on the same items: wall time, scores and memory.

    python benchmarks/evaluate.py --datasets-root ../shared/data/hub --corpus ../shared/data/corpus

Both are whole commands in fresh processes, started in turns, on a Llama with Llama-3.2-1B's ratio of body to
head (see evaluate_world.py) and random weights, on one thread each. lm-eval runs at the batch size, of those tried, at
which it was fastest.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from harness import MIB, Results, facts, peak_rise_bytes, say, table, verdict

HERE = Path(__file__).resolve().parent
_SUBJECTS = [
    "mmlu_abstract_algebra",
    "mmlu_college_computer_science",
    "mmlu_electrical_engineering",
    "mmlu_high_school_european_history",
    "mmlu_high_school_psychology",
    "mmlu_jurisprudence",
    "mmlu_moral_disputes",
    "mmlu_professional_medicine",
    "mmlu_world_religions",
]
TASKS: dict[str, dict[str, Any]] = {
    "mmlu": {"names": ",".join(_SUBJECTS), "shots": 5, "limit": 250, "batches": [1, 4, 8], "memory_batch": 1},
    "hellaswag": {"names": "hellaswag", "shots": 0, "limit": 400, "batches": [1, 8, 32], "memory_batch": 8},
}
"""MMLU is every seventh of its 57 subjects by name, at most 250 of each one's items (of 246 on average)."""
WANTED = {"mmlu": 5.0, "hellaswag": 2.0}
"""How many times sooner than lm-eval's command ours is asked to be."""
SAMPLE_ITEMS, MEMORY_ITEMS = 3, 2
SECONDS = {"batch": 60.0, "command": 240.0, "memory": 40.0}


def measure(case: dict[str, Any]) -> Any:
    return {"batch": measure_batches, "command": measure_command, "memory": measure_memory}[case["kind"]](case)


def measure_batches(case: dict[str, Any]) -> dict[str, float]:
    """Seconds of lm-eval's `loglikelihood` on a sample of the task, by batch size."""
    requests = task_requests(case, SAMPLE_ITEMS)
    found = {}
    for size in case["batches"]:
        model = harness_model(case["model"], size)
        model.loglikelihood(requests[:8], disable_tqdm=True)
        start = time.perf_counter()
        model.loglikelihood(requests, disable_tqdm=True)
        found[str(size)] = time.perf_counter() - start
    return found


def measure_command(case: dict[str, Any]) -> dict[str, Any]:
    """Wall and processor seconds of one whole command, its peak memory, and the accuracy it found by task."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
        start = time.perf_counter()
        subprocess.run(COMMANDS[case["side"]](case, out), check=True, cwd=folder, env=environment, stdout=sys.stderr)
        wall = time.perf_counter() - start
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        if case["side"] == "ours":
            scores = {name: [score["acc"], score["n"]] for name, score in json.loads(out.read_text())["tasks"].items()}
        else:
            (path,) = out.rglob("results_*.json")
            content = json.loads(path.read_text())
            counts = content["n-samples"]
            scores = {n: [s["acc,none"], counts[n]["effective"]] for n, s in content["results"].items() if n in counts}
    return {
        "wall_s": wall,
        "cpu_s": used.ru_utime + used.ru_stime,
        "peak_mib": used.ru_maxrss * 1024 / MIB,
        "scores": scores,
    }


def our_command(case: dict[str, Any], out: Path) -> list[str]:
    command = [sys.executable, "-m", "compress.cli", "eval", case["model"], "--tasks", case["names"], "--out", str(out)]
    command += ["--datasets-root", case["root"], "--limit", str(case["limit"]), "--num-fewshot", str(case["shots"])]
    return [*command, "--set", "eval.speed=false", "--set", "eval.device=cpu"]


def harness_command(case: dict[str, Any], out: Path) -> list[str]:
    command = [sys.executable, str(HERE / "evaluate_peer.py"), case["root"], "run", "--model", "hf", "--device", "cpu"]
    command += ["--model_args", f"pretrained={case['model']},dtype=float32", "--tasks", case["names"]]
    command += ["--num_fewshot", str(case["shots"]), "--limit", str(case["limit"])]
    return [*command, "--batch_size", str(case["batch"]), "--output_path", str(out)]


COMMANDS = {"ours": our_command, "lm-eval": harness_command}


def measure_memory(case: dict[str, Any]) -> dict[str, float]:
    """Peak memory of scoring: its rise over what the process held before, and the process's own."""
    requests = task_requests(case, MEMORY_ITEMS)
    if case["side"] == "ours":
        from compress.evaluate import EvalConfig
        from compress.evaluate.harness.scorer import Scorer
        from compress.inference.readout import load_checkpoint

        model: Any = Scorer(load_checkpoint(case["model"], device="cpu"), EvalConfig().batch_tokens)
    else:
        model = harness_model(case["model"], case["batch"])
    model.loglikelihood(requests[:1], disable_tqdm=True)
    rise = peak_rise_bytes(lambda: model.loglikelihood(requests, disable_tqdm=True), "cpu")
    return {"rise_mib": rise / MIB, "process_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MIB}


def harness_model(model: str, batch: int) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=model, dtype="float32", device="cpu", batch_size=batch)


def task_requests(case: dict[str, Any], items: int) -> list[Any]:
    """lm-eval's requests for the first items of the case's sample of tasks."""
    from compress.evaluate import EvalConfig
    from compress.evaluate.harness.catalog import build_tasks
    from compress.evaluate.harness.local_data import local_datasets

    root = case["root"]
    with local_datasets(Path(root)):
        loaded = build_tasks(EvalConfig(tasks=case["names"].split(","), datasets_root=root, num_fewshot=case["shots"]))
    for task in loaded["tasks"].values():
        task.build_all_requests(limit=items, rank=0, world_size=1)
    return [instance for task in loaded["tasks"].values() for instance in task.instances]


def prepare(work: Path, corpus: Path, hub: Path) -> dict[str, str]:
    """Models and data; a root that has the hub's folders and ours."""
    from evaluate_world import LARGE_VOCABULARY, make_endings, make_model

    model = make_model(work / "model", corpus)
    large = make_model(work / "model-128k", corpus, vocabulary=LARGE_VOCABULARY, layers=2)
    root = work / "data"
    make_endings(root, corpus)
    for organization in hub.iterdir():
        link = root / organization.name
        if organization.is_dir() and not link.exists():
            link.symlink_to(organization.resolve())
    return {"model": str(model), "large": str(large), "root": str(root)}


def run(results: Results, paths: dict[str, str], chosen: list[str], rounds: int, smoke: bool) -> None:
    """Everything that is not measured yet: lm-eval's batch sizes, then the commands in turns, then memory."""
    tasks = {task: {**TASKS[task], "limit": 2 if smoke else TASKS[task]["limit"]} for task in chosen}
    common = {
        task: {"task": task, "root": paths["root"], "names": settings["names"], "shots": settings["shots"]}
        for task, settings in tasks.items()
    }
    cases: dict[str, dict[str, Any]] = {}
    for task, settings in tasks.items():
        sizes = {"kind": "batch", "model": paths["model"], "batches": settings["batches"]}
        cases[f"batch {task}"] = {**sizes, **common[task]}
    results.run(cases, dict.fromkeys(cases, SECONDS["batch"]))
    cases = {}
    for number in range(rounds):
        for task, settings in tasks.items():
            for side in COMMANDS:
                command = {"kind": "command", "side": side, "round": number, "model": paths["model"]}
                command |= {"limit": settings["limit"], "batch": best_batch(results, task)}
                cases[f"command {task} {side} {number}"] = {**command, **common[task]}
    results.run(cases, dict.fromkeys(cases, SECONDS["command"]))
    cases = {}
    for task, settings in tasks.items():
        for side in COMMANDS:
            memory = {"kind": "memory", "side": side, "model": paths["large"], "batch": settings["memory_batch"]}
            cases[f"memory {task} {side}"] = {**memory, **common[task]}
    results.run(cases, dict.fromkeys(cases, SECONDS["memory"]))


def best_batch(results: Results, task: str) -> int:
    """The batch size at which lm-eval was fastest on the sample."""
    (times,) = [result for case, result in results.of_kind("batch") if case["task"] == task]
    return int(min(times, key=lambda size: float(times[size])))


def page(results: Results) -> str:
    lines = ["# Evaluation beside lm-eval's hf backend", "", results.about(), ""]
    commands = results.of_kind("command")
    rows, verdicts = [], []
    for task in dict.fromkeys(case["task"] for case, _ in commands):
        sides = {side: [(c, r) for c, r in commands if (c["task"], c["side"]) == (task, side)] for side in COMMANDS}
        if not all(sides.values()):
            continue
        pairs = list(zip(*sides.values(), strict=False))
        ratios = [theirs["wall_s"] / ours["wall_s"] for (_, ours), (_, theirs) in pairs]
        cpu = [theirs["cpu_s"] / ours["cpu_s"] for (_, ours), (_, theirs) in pairs]
        for side, found in sides.items():
            case = found[0][0]
            wall, used = (median(r[key] for _, r in found) for key in ("wall_s", "cpu_s"))
            batch = f"{case['batch']} rows" if side == "lm-eval" else "-"
            count = sum(count for _, count in found[0][1]["scores"].values())
            rows.append([task, case["shots"], count, side, batch, f"{wall:.1f}", f"{used:.1f}", peak(found)])
        same = sum(r["scores"][name] == t["scores"][name] for (_, r), (_, t) in pairs for name in t["scores"])
        verdicts.append(
            f"- {task}: {verdict(median(ratios), WANTED[task], at_most=False)} times sooner (each pair: "
            f"{', '.join(f'{ratio:.2f}' for ratio in ratios)}; by processor time "
            f"{', '.join(f'{ratio:.2f}' for ratio in cpu)}); accuracy equal in {same} of "
            f"{sum(len(t['scores']) for _, (_, t) in pairs)} tasks"
        )
    head = ["task", "shots", "items", "command", "batch", "wall s", "processor s", "peak MiB"]
    lines += ["## Whole commands", "", table(head, rows), *verdicts, ""]
    lines += ["## lm-eval's batch size", "", "Seconds on a sample of each task:", ""]
    for case, times in results.of_kind("batch"):
        lines += [f"- {case['task']}: " + ", ".join(f"{size} rows {float(s):.1f}" for size, s in times.items())]
    lines += ["", "## Peak memory at V = 128256", "", *memory_lines(results)]
    return "\n".join(lines) + results.failures()


def peak(found: list[Any]) -> str:
    return f"{median(result['peak_mib'] for _, result in found):.0f}"


def memory_lines(results: Results) -> list[str]:
    rows, verdicts = [], []
    found = results.of_kind("memory")
    batches = {case["task"]: case["batch"] for case, _ in found}
    for task in batches:
        sides = {case["side"]: result for case, result in found if case["task"] == task}
        for side, result in sides.items():
            batch = "-" if side == "ours" else f"{batches[task]} rows"
            rows.append([task, side, batch, f"{result['rise_mib']:.0f}", f"{result['process_mib']:.0f}"])
        if len(sides) == 2:
            share = sides["ours"]["rise_mib"] / sides["lm-eval"]["rise_mib"]
            whole = sides["ours"]["process_mib"] / sides["lm-eval"]["process_mib"]
            verdicts.append(f"- {task}: {verdict(share, 0.25, at_most=True)} (whole process: {whole:.2f})")
    head = ["task", "side", "batch", "rise over the idle process, MiB", "whole process, MiB"]
    return [table(head, rows), *verdicts, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = HERE.parent.parent / "shared" / "data"
    parser.add_argument("--datasets-root", type=Path, default=shared / "hub", help="folder with cais/mmlu")
    parser.add_argument("--corpus", type=Path, default=shared / "corpus", help="folder of parquet files of text")
    parser.add_argument("--work", type=Path, default=HERE / "work" / "evaluate", help="models and data are made here")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--rounds", type=int, default=2, help="times each command is run, in turns")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--smoke", action="store_true", help="a few items: does it run?")
    parser.add_argument("--report", action="store_true", help="the page again; measure nothing")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if options.case:
        sys.stdout.write(json.dumps(measure(json.loads(options.case))) + "\n")
        return
    options.work = options.work.resolve()
    out = options.out / "smoke" if options.smoke else options.out
    results = Results(out / "evaluate.json", Path(__file__).resolve())
    if not options.report:
        say(facts())
        chosen = ["hellaswag"] if options.smoke else options.tasks
        run(
            results, prepare(options.work, options.corpus, options.datasets_root), chosen, options.rounds, options.smoke
        )
    text = page(results)
    (out / "evaluate.md").write_text(text)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
