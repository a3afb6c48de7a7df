"""How models were trained, beside the first of them that was: by what, on which rows, and what was set otherwise."""

from collections.abc import Mapping
from typing import Any

from compress.report.run_files import Record

_TEXT_ALONE = "the text alone (supervised fine-tuning)"


def trainings(found: Mapping[str, Record]) -> dict[str, Record]:
    """By model, of trainings as `read_training` gives them: `learns_from`, `trained_parameters`, `parameters` and
    `tokens`; of all but the first `rows` (whether it read the same), `others` (those of `student`, as it
    was before, and `teacher` that are not the first's) and `changed`, settings with the value of each.

    A share of 0 for the soft loss is supervised fine-tuning; see `DistillConfig.alpha`.
    """
    made: dict[str, Record] = {}
    first: Record | None = None
    for key, record in found.items():
        config = record["manifest"]["config"]
        made[key] = {
            "learns_from": _learns_from(config) + _own_text(config),
            **{name: record.get(name) for name in ("trained_parameters", "parameters", "tokens")},
            "rows": None if first is None else _rows(first, record),
            "others": [] if first is None else _others(_inputs(first), _inputs(record)),
            "changed": {} if first is None else _changed(first["manifest"]["config"], config),
        }
        first = first or record
    return made


def _learns_from(config: Mapping[str, Any]) -> str:
    alpha = config["alpha"]
    if config.get("weights") is not None or isinstance(alpha, dict):
        return "the teacher and the text, by weights of their own (distillation)"
    if alpha == 0:
        return _TEXT_ALONE
    return "the teacher alone (distillation)" if alpha == 1 else f"{alpha:g} the teacher, {1 - alpha:g} the text"


def _own_text(config: Mapping[str, Any]) -> str:
    """In how many steps it learns of its own text, where it does."""
    options = config.get("on_policy")
    return f"; in {options['fraction']:.0%} of the steps of text of its own" if options else ""


def _inputs(record: Record) -> Record:
    found: Record = record["manifest"]["inputs"]
    return found


def _others(first: Record, inputs: Record) -> list[str]:
    """A training without a teacher differs by its `alpha`, which says so."""
    return [
        role
        for role in ("student", "teacher")
        if None not in (first.get(role), inputs.get(role)) and first[role] != inputs[role]
    ]


def _rows(first: Record, record: Record) -> str:
    if _inputs(record).get("data") != _inputs(first).get("data"):
        return "of another text"
    if None in (first["rows_sha256"], record["rows_sha256"]):
        return "of the same text; which ones is not known"
    return "the same" if record["rows_sha256"] == first["rows_sha256"] else "of the same text, others or in other steps"


def _changed(first: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, list[Any]]:
    """[value of the first, value of this] of each setting that both records have."""
    return {name: [first[name], value] for name, value in config.items() if name in first and first[name] != value}
