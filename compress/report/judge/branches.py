"""A healed student that was merged of branches, beside them: scores of the whole and of its parts."""

from collections.abc import Sequence
from statistics import mean

from compress.report.judge.scores import build_scores
from compress.report.run_files import STUDENTS, Record, RunFiles, called, number

_MEASURES = (("fidelity", "kl_nats"), ("heldout", "loss_nats"))


def branches(run: RunFiles) -> Record | None:
    """`rows`: the cut, each branch, the mean of the branches, and what they were merged into; of each its `tokens` and
    `seconds` of training, `kl_nats` and `loss_nats` by source of the text, with standard errors, and scores by task.
    `nearer` and `farther`: the sources on which the merged model has less KL than the mean of its branches, or more.

    None where nothing was merged, or not all was evaluated.
    """
    scored = {branch.name: branch.scores for branch in run.branches if branch.scores is not None}
    if not run.branches or len(scored) < len(run.branches) or "student" not in run.evals:
        return None
    sources = list(scored)
    evals: dict[str, Record] = {key: run.evals[key] for key in STUDENTS if key in run.evals}
    evals |= {_key(name): record for name, record in scored.items()}
    tasks = build_scores(evals)
    main = [task for task, entry in tasks.items() if entry["part_of"] is None]

    def row(label: str, key: str, trained: Record | None = None) -> Record:
        return {
            "model": label,
            **{name: number((trained or {}).get(name)) for name in ("tokens", "seconds")},
            **{measure: _by_source(evals[key], part, sources) for part, measure in _MEASURES},
            "tasks": {task: {**tasks[task].get(key, {}), "metric": tasks[task]["metric"]} for task in main},
        }

    before = [row(run.labels["student_init"], "student_init")] if "student_init" in evals else []
    parts = [row(f"healed on {branch.name}", _key(branch.name), branch.distill) for branch in run.branches]
    average: Record = {"model": "mean of the branches", "tasks": {}}
    average |= {measure: _mean(parts, measure, sources) for _, measure in _MEASURES}
    whole = row(f"{run.labels['student']}: merged", "student")
    gains = {name: _less(whole, average, name) for name in sources}
    return {
        "rows": [*before, *parts, average, whole],
        "merged": called(run.labels["student"]),
        "nearer": [name for name, gain in gains.items() if gain is not None and gain >= 0],
        "farther": [name for name, gain in gains.items() if gain is not None and gain < 0],
    }


def _key(source: str) -> str:
    """What the branch of a source is called among the models that are scored."""
    return f"branch {source}"


def _by_source(record: Record, part: str, sources: Sequence[str]) -> dict[str, Record]:
    found = (record.get(part) or {}).get("by_source") or {}
    return {name: found.get(name) or {} for name in sources}


def _mean(parts: Sequence[Record], measure: str, sources: Sequence[str]) -> dict[str, Record]:
    found: dict[str, Record] = {}
    for name in sources:
        values = [number(part[measure][name].get(measure)) for part in parts]
        known = [value for value in values if value is not None]
        found[name] = {measure: mean(known)} if len(known) == len(values) else {}
    return found


def _less(whole: Record, average: Record, source: str) -> float | None:
    """How much less KL the whole has on a source than its parts have on average."""
    own, parts = (number(each["kl_nats"][source].get("kl_nats")) for each in (whole, average))
    return None if own is None or parts is None else parts - own
