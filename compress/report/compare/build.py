"""The comparison as plain data, in the shape that the report's tables and figures are made from."""

from collections.abc import Sequence

from compress.base.errors import InputError
from compress.base.outputs import MADE_BY
from compress.report.compare.sources import Model
from compress.report.judge.draft import drafts
from compress.report.judge.flips import summarise_flips
from compress.report.judge.scores import build_scores, compare, mismatches
from compress.report.judge.trainings import trainings
from compress.report.judge.verdicts import judge_all
from compress.report.run_files import Record


def build_comparison(models: Sequence[Model]) -> Record:
    """compare.json: `labels`, `scores`, `verdicts`, `mismatches`, `compared` (each model with the first), `overall`,
    `flips` (of the last model), `draft`, `trainings`, `trained_pairs` (trained models with the first that was, where
    that is not the first of all), and each model's evaluation under its key, m0, m1, ...

    Raises:
        InputError: no other model has a task, or held-out text, in common with the first.
    """
    keys = [f"m{index}" for index in range(len(models))]
    labels = {key: model.label for key, model in zip(keys, models, strict=True)}
    evals = {key: model.record for key, model in zip(keys, models, strict=True)}
    scores = build_scores(evals)
    _require_common(evals, labels)
    reference, *others = keys
    items = {key: model.items for key, model in zip(keys, models, strict=True)}
    compared = {key: compare(scores, (reference, key), (items[reference], items[key])) for key in others}
    tasks = {key: each.tasks for key, each in compared.items()}
    trained = [key for key, model in zip(keys, models, strict=True) if model.training is not None]
    pairs = {
        key: compare(scores, (trained[0], key), (items[trained[0]], items[key])).tasks
        for key in trained[1:]
        if trained[0] != reference
    }
    name = "Comparison" if others else labels[reference]
    return {
        MADE_BY: "compress compare",
        "name": name,
        "headline": _headline(list(labels.values())),
        "labels": labels,
        **evals,
        "scores": scores,
        "verdicts": judge_all(evals, scores, tasks, labels),
        "mismatches": mismatches(evals, scores, labels),
        "compared": tasks,
        "overall": {key: each.overall for key, each in compared.items()},
        "flips": summarise_flips(compared, reference),
        "draft": drafts(evals, None),
        "trainings": trainings(
            {key: m.training for key, m in zip(keys, models, strict=True) if m.training is not None}
        ),
        "trained_pairs": pairs,
        "train": None,
        "prune": None,
        "left_out": [f"{labels[key]}: no per-item scores, so no paired intervals." for key in keys if not items[key]],
    }


def _require_common(evals: dict[str, Record], labels: dict[str, str]) -> None:
    (first, base), *others = evals.items()
    for key, record in others:
        texts = any(base.get(part) and record.get(part) for part in ("heldout", "other_text"))
        if base["tasks"].keys() & record["tasks"].keys() or texts:
            continue
        known, wanted = (", ".join(each["tasks"]) or "no task" for each in (base, record))
        raise InputError(
            f"{labels[first]} and {labels[key]} have nothing in common to compare: the one was scored on {known}, the "
            f"other on {wanted}. Evaluate both with the same --tasks or --text."
        )


def _headline(labels: list[str]) -> str:
    first, *others = labels
    if not others:
        return f"What was measured of {first}."
    if len(others) == 1:
        return f"{others[0]} compared with {first}."
    return f"{', '.join(others[:-1])} and {others[-1]}, each compared with {first}."
