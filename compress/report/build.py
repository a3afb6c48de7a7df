"""From the files of a run to report.json: the contract's fields and what the pages need beside them."""

from collections.abc import Mapping
from typing import Any

from compress.base.outputs import MADE_BY
from compress.base.units import format_count
from compress.report.cells import listed, ratio_with_interval
from compress.report.judge.ability import abilities, falls
from compress.report.judge.branches import branches
from compress.report.judge.draft import drafts
from compress.report.judge.exports import exports
from compress.report.judge.flips import summarise_flips
from compress.report.judge.recovery import recovery
from compress.report.judge.scores import Comparison, build_scores, compare, mismatches
from compress.report.judge.sizes import sizes_between
from compress.report.judge.speeds import speed_pair
from compress.report.judge.target import reached
from compress.report.judge.verdicts import judge_all
from compress.report.judge.worth import worth
from compress.report.run_files import STUDENTS, Record, RunFiles, StageFiles, called, layers_of, number


def build_report(run: RunFiles) -> Record:
    """Everything a page shows, as plain JSON data.

    Beside the contract's `teacher`, `student_init`, `student`, `retention`, `compression` and `train` it has: `labels`
    (of the evaluated models), `scores` (by task and model, with intervals and chance), `verdicts` (what each means, in
    words), `mismatches`, `retention_student_init`, `overall` (retention over all tasks), `flips` (counts and a few),
    `draft` (the student as its teacher's draft), `prune`, `target` (what was to be reached), `sizes` (healed student,
    grown models and teacher, where models were grown), `exports` (teacher, healed student and its other formats, where
    it was exported), `branches` (the students that the healed one was merged of, where it was), `abilities` (scores of
    the student while it was trained) and `falls` (those that got worse while it came nearer to its teacher, in words),
    `forecast` (what more tokens of healing would give), `worth` (what the run cost, and from how many tokens on that is
    saved), `headline` and `left_out` (what this run lacks, in words). What is absent is null.
    """
    labels = {key: run.labels[key] for key in run.evals}
    scores = build_scores(run.evals)
    compared, forecasts = _comparisons(run, scores), recovery(run)
    report: Record = {
        MADE_BY: "compress report",
        "name": run.name,
        "labels": labels,
        **{key: run.evals.get(key) for key in run.expected},
        "scores": scores,
        "verdicts": judge_all(run.evals, scores, {key: each.tasks for key, each in compared.items()}, labels),
        "mismatches": mismatches(run.evals, scores, labels),
        "retention": compared["student"].tasks if "student" in compared else {},
        "retention_student_init": compared["student_init"].tasks if "student_init" in compared else {},
        "overall": {model: compared[model].overall if model in compared else None for model in STUDENTS},
        "flips": summarise_flips(compared, "teacher"),
        "draft": drafts({key: run.evals[key] for key in STUDENTS if key in run.evals}, run.evals.get("teacher")),
        "compression": _compression(run),
        "target": reached(run, _compression(run), compared.get("student"), _grown(run)),
        "train": _train(run.distill),
        "forecast": forecasts,
        "abilities": abilities(run.abilities),
        "falls": list(map(str, falls(run.abilities, run.heldout_rows, _compared_by(run)))),
        "worth": worth(run),
        "sizes": sizes_between(run, scores),
        "exports": exports(run, scores),
        "branches": branches(run),
        "prune": {k: v for k, v in run.prune.items() if k not in ("manifest", "sha256")} if run.prune else None,
        "left_out": _left_out(run, forecasts),
    }
    if run.stages:
        report["stages"] = [_stage(stage) for stage in run.stages]
    report["headline"] = headline(report)
    return report


def _compared_by(run: RunFiles) -> str:
    """The held-out measure that its best step has least of."""
    return str((run.distill or {}).get("best_by") or "heldout_kl")


def _comparisons(run: RunFiles, scores: Mapping[str, Record]) -> dict[str, Comparison]:
    """Each student against its teacher, where both have been evaluated."""
    if "teacher" not in run.evals:
        return {}
    items = run.items
    return {
        model: compare(scores, ("teacher", model), (items["teacher"], items[model]))
        for model in STUDENTS
        if model in run.evals
    }


def _grown(run: RunFiles) -> dict[int, Comparison]:
    """Each grown model against the teacher, where a target asks for what is kept."""
    found: dict[int, Comparison] = {}
    if run.target is None or "teacher" not in run.evals:
        return found
    for size, record in run.grown.items():
        scores = build_scores({"teacher": run.evals["teacher"], "grown": record})
        found[size] = compare(scores, ("teacher", "grown"), (run.items["teacher"], run.grown_items[size]))
    return found


def _train(distill: Record | None) -> Record | None:
    """The training record without its manifest, but with the peak memory that it names and the sum of the plan."""
    if distill is None:
        return None
    peak = (distill.get("manifest") or {}).get("peak_gib")
    planned = sum((distill.get("memory_plan") or {}).values()) or None
    record = {key: value for key, value in distill.items() if key != "manifest"}
    return {"peak_gib": peak, "planned_memory": planned, **record}


def _stage(stage: StageFiles) -> Record:
    """The figures of one stage of a chain; KL is to its own teacher, on held-out rows, before and after it."""
    trained, first = stage.distill or {}, next(iter(stage.heldout_rows), {})
    return {
        "taught_by": stage.taught_by,
        "kept_layers": None if stage.prune is None else layers_of(stage.prune)[0],
        **{key: trained.get(key) for key in ("parameters", "tokens", "seconds", "heldout_kl")},
        "heldout_kl_before": first.get("heldout_kl") if first.get("step") == 0 else None,
    }


def _compression(run: RunFiles) -> Record | None:
    """Sizes and speeds of the smallest model as a share of the teacher's; speeds only where `speed_pair` has them."""
    model = next((key for key in reversed(STUDENTS) if key in run.evals), None)
    if model is None or "teacher" not in run.evals:
        return None
    teacher, student = run.evals["teacher"], run.evals[model]
    fast, slow = speed_pair(student, teacher) or ({}, {})

    def of_teacher(key: str, small: Mapping[str, Any], large: Mapping[str, Any]) -> float | None:
        top, bottom = number(small.get(key)), number(large.get(key))
        return top / bottom if top is not None and bottom else None

    return {
        "model": model,
        "params": of_teacher("params", student, teacher),
        "bytes": of_teacher("bytes", student, teacher),
        "speedup_prefill": of_teacher("prefill_tokens_per_s", fast, slow),
        "speedup_decode": of_teacher("decode_tokens_per_s", fast, slow),
        "peak_memory": of_teacher("peak_gib", fast, slow),
    }


def _left_out(run: RunFiles, forecasts: list[Record]) -> list[str]:
    missing = [f"No evaluation of the {run.labels[key]} model." for key in run.expected if key not in run.evals]
    if run.prune is None and not run.given_student:
        missing.append("No prune.json: which layers were kept is not shown.")
    if run.distill is None and not run.branches:
        missing.append("No distill.json: the student has not been healed, or its training record is elsewhere.")
    elif not run.train_rows and not run.branches:
        missing.append("No train/metrics.jsonl: no loss curves.")
    reasons: dict[str, list[str]] = {}
    for entry in forecasts:
        if entry["refused"] is not None:
            reasons.setdefault(entry["refused"], []).append(entry["name"])
    missing += [f"No forecast of the held-out {listed(names)}: {why}." for why, names in reasons.items()]
    for key, record in run.evals.items():
        if not run.items[key] and record["tasks"]:
            missing.append(f"No per-item scores of the {run.labels[key]} model: no paired intervals with it.")
        if not record.get("speed"):
            missing.append(f"The speed of the {run.labels[key]} model was not measured.")
    return missing


def headline(report: Record) -> str:
    """One sentence: size, what is kept above chance, speed. Only what was measured is said."""
    compression, labels = report["compression"], report["labels"]
    if compression is None:
        return f"{report['name']}: scores of {listed(list(labels.values()))}."
    model = compression["model"]
    teacher, student = report["teacher"], report[model]
    facts = []
    if compression["params"] is not None:
        facts.append(f"has {format_count(student['params'])} of {format_count(teacher['params'])} parameters")
    overall = report["overall"][model]
    if overall and overall["chance_corrected"] is not None:
        facts.append(_kept(overall))
    if compression["speedup_decode"] is not None:
        facts.append(f"decodes {compression['speedup_decode']:.1f}× as fast")
    return f"The {called(labels[model])} {listed(facts)}." if facts else f"{report['name']}: a student and its teacher."


def _kept(overall: Record) -> str:
    """What is kept above chance; where the interval reaches down to nothing, that it may be nothing."""
    share, interval = overall["chance_corrected"], overall["ci95"]
    if share <= 0:
        return "keeps none of the teacher's score above chance"
    if interval and interval[0] <= 0:
        shown = ratio_with_interval(share, interval)
        return f"keeps nothing of the teacher's score above chance that is more than noise ({shown})"
    return f"keeps {share:.0%} of the teacher's score above chance"
