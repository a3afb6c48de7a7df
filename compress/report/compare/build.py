"""The comparison as plain data, in the shape that the report's tables and figures are made from."""

from collections.abc import Mapping, Sequence

import numpy as np

from compress.base.errors import InputError
from compress.base.outputs import MADE_BY
from compress.report.compare.sources import Model
from compress.report.judge.documents import MEASURES, Measure, beside, winner_words
from compress.report.judge.draft import drafts
from compress.report.judge.flips import summarise_flips
from compress.report.judge.scores import build_scores, compare, mismatches
from compress.report.judge.trainings import trainings
from compress.report.judge.verdicts import judge_all
from compress.report.pages.curves import loss_curves
from compress.report.run_files import Record

_NAMED = 4


def build_comparison(models: Sequence[Model]) -> Record:
    """compare.json: `labels`, `scores`, `verdicts`, `mismatches`, `compared` (each model with the first), `overall`,
    `flips` (of the last model), `draft`, `trainings`, `trained_pairs` (trained models with the first that was, where
    that is not the first of all), `documents` (of each measure on held-out text that several have: its `reference`, and
    of each model `value`, `stderr` and, paired over documents, `beside_first`), `curves` of the losses by title and
    model, and each model's evaluation under its key, m0, m1, ...

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
    measures = {measure: found for measure in MEASURES if len(found := _alike(evals, measure)) > 1}
    logs = {key: model.log for key, model in zip(keys, models, strict=True) if any(model.log)}
    won = [winner_words(labels, found, measure) or "" for measure, found in measures.items()][:1]
    name = "Comparison" if others else labels[reference]
    return {
        MADE_BY: "compress compare",
        "name": name,
        "headline": " ".join([_headline(list(labels.values())), *won]),
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
        "documents": [_documents(found, measure) for measure, found in measures.items()],
        "curves": loss_curves(logs),
        "train": None,
        "prune": None,
        "left_out": [f"{labels[key]}: no per-item scores, so no paired intervals." for key in keys if not items[key]],
    }


def _alike(evals: Mapping[str, Record], measure: Measure) -> dict[str, Record]:
    """The models that have a measure as the first of them has it: of the same text and teacher, as far as known."""
    found: dict[str, Record] = {}
    for key, record in evals.items():
        if measure.value(record) is None:
            continue
        first = next(iter(found.values()), record)
        inputs = [(each.get("manifest") or {}).get("inputs") or {} for each in (first, record)]
        roles = ("text", "teacher") if measure.part == "fidelity" else ("text",)
        own, base = measure.documents(record), measure.documents(first)
        same = own is None or base is None or np.array_equal(own[0], base[0])
        if same and all(None in (told := [each.get(role) for each in inputs]) or told[0] == told[1] for role in roles):
            found[key] = record
    return found


def _documents(evals: Mapping[str, Record], measure: Measure) -> Record:
    reference = next(iter(evals))
    compared = beside(evals, reference, measure)
    models = {
        key: {"value": measure.value(record), "stderr": measure.stderr(record), "beside_first": compared.get(key)}
        for key, record in evals.items()
    }
    return {"measure": measure.name, "title": measure.title, "reference": reference, "models": models}


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
    told = f"{', '.join(others[:-1])} and {others[-1]}" if len(others) <= _NAMED else f"{len(others)} models"
    return f"{told}, each compared with {first}."
