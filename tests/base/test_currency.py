"""What counts as a change: options with their marks, inputs, outputs; and what every later version must say of it."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import pytest
from earlier_runs import ARCHIVES

from compress.base.config import config, to_dict
from compress.base.currency import (
    FREE,
    PLACE,
    Before,
    Meaning,
    Missing,
    as_before,
    changes,
    decisive,
    input_changes,
    inputs_now,
    setting_changes,
)
from compress.base.disk import read_json, sha256_tree, write_json, write_text
from compress.base.records import manifest
from compress.data import DataConfig
from compress.demo import WorldConfig
from compress.distill import DistillConfig
from compress.evaluate import EvalConfig
from compress.prune import PruneConfig, RankAfterConfig, RankingConfig, RepairConfig, StorageConfig
from compress.run.sections import ScratchTeacher


@config
class Inner:
    depth: int = 1
    newer: Annotated[str, Before("old way")] = "new way"


@config
class Options:
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    threads: Annotated[int, FREE] = 1
    text: Annotated[str | None, PLACE] = None
    newer: Annotated[bool, Before(False)] = True
    inner: Inner | None = None


@config
class Quick:
    fast: Annotated[bool | Literal["auto"], Meaning("auto", False)] = "auto"


@pytest.mark.parametrize("made", [{}, {"fast": False}, {"fast": "auto"}])
def test_a_newer_value_means_what_results_were_made_with(made: dict[str, Any]) -> None:
    assert setting_changes(Quick, made, to_dict(Quick())) == []
    assert setting_changes(Quick, made, {"fast": False}) == []
    assert setting_changes(Quick, made, {"fast": True}) == ["fast was false and is true"]
    assert as_before(Quick, to_dict(Quick())) == as_before(Quick, {"fast": False})


@pytest.mark.parametrize(
    ("made", "asked", "expected"),
    [
        ({}, Options(newer=False), []),
        ({}, Options(), ["newer was false and is true"]),
        ({"newer": True}, Options(), []),
        ({"newer": True, "lr": 2e-3}, Options(), ["lr was 0.002 and is 0.001"]),
        ({"newer": True, "betas": [0.9, 0.95]}, Options(), []),
        ({"newer": True, "threads": 4}, Options(), []),
        ({"newer": True, "text": "a/b"}, Options(text="/elsewhere/b"), []),
        ({"newer": True, "text": "a/b"}, Options(), ['text was "a/b" and is null']),
        ({"newer": True, "gone": 3}, Options(), ["gone was 3 and is null"]),
        ({"newer": True, "inner": {"depth": 1}}, Options(inner=Inner(newer="old way")), []),
        (
            {"newer": True, "inner": {"depth": 1}},
            Options(inner=Inner(depth=2)),
            ["inner.depth was 1 and is 2", 'inner.newer was "old way" and is "new way"'],
        ),
    ],
)
def test_settings_are_compared_as_their_owner_says(made: dict[str, Any], asked: Options, expected: list[str]) -> None:
    assert setting_changes(Options, made, to_dict(asked)) == expected


def test_what_results_are_remembered_by_knows_no_newer_option_until_it_is_used() -> None:
    assert as_before(Options, to_dict(Options(newer=False))) == {
        "lr": 1e-3, "betas": [0.9, 0.95], "threads": 1, "text": None, "inner": None
    }  # fmt: skip
    assert as_before(Options, to_dict(Options(inner=Inner(newer="old way"))))["inner"] == {"depth": 1}
    assert decisive(Options, to_dict(Options())) == {"lr": 1e-3, "betas": [0.9, 0.95], "newer": True, "inner": None}


def test_an_input_that_a_result_does_not_name_was_none_and_one_that_is_missing_is_no_change() -> None:
    def absent() -> Any:
        raise Missing("not mounted")

    now = inputs_now({"teacher": lambda: "ab", "cache": lambda: None, "text": absent})
    assert input_changes({"teacher": "ab", "text": "cd"}, now) == []
    assert input_changes({"teacher": "xy"}, now | {"cache": "ef"}) == ["the teacher is another", "the cache is another"]


def test_a_manifest_holds_until_config_inputs_or_outputs_change(tmp_path: Path) -> None:
    write_text(tmp_path / "out.bin", "result")
    config, inputs = {"lr": 1e-3, "betas": (0.9, 0.95)}, {"teacher": {"config.json": "ab"}}
    record = manifest(config=config, inputs=inputs, outputs=sha256_tree(tmp_path), seconds=1.0)
    write_json(tmp_path / "manifest.json", record)
    record = read_json(tmp_path / "manifest.json")
    assert record["versions"]["torch"]
    assert record["peak_gib"] > 0

    def found(**other: Any) -> list[str]:
        return changes(tmp_path, record, kind=None, **{"config": config, "inputs": inputs, **other})

    assert found() == []
    assert found(config={**config, "lr": 2e-3}) == ["lr was 0.001 and is 0.002"]
    assert found(inputs={"teacher": {"config.json": "cd"}}) == ["the teacher is another"]
    write_text(tmp_path / "out.bin", "resulT")
    assert found() == ["its files were altered (out.bin)"]
    (tmp_path / "out.bin").unlink()
    assert found() == ["its files were altered (out.bin)"]


CONFIGS = (
    DataConfig, PruneConfig, RankingConfig, RankAfterConfig, RepairConfig, StorageConfig, DistillConfig, EvalConfig,
    WorldConfig, ScratchTeacher,
)  # fmt: skip
EARLIER = json.loads((ARCHIVES / "fields_092ab7b.json").read_text())


@pytest.mark.parametrize("kind", CONFIGS, ids=lambda kind: kind.__name__)
def test_an_option_that_came_after_results_says_what_they_were_made_with(kind: type) -> None:
    """Or that it touches no result; else finished work of users would no longer count as done."""
    hints = get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        if field.name not in EARLIER[kind.__name__]:
            marks = getattr(hints[field.name], "__metadata__", ())
            assert FREE in marks or any(isinstance(mark, Before) for mark in marks), field.name
    assert EARLIER[kind.__name__].keys() <= hints.keys(), "an option went, and with it what results were made with"


def test_a_cut_that_was_measured_and_repaired_with_the_defaults_of_092ab7b_is_current() -> None:
    made = {**EARLIER["PruneConfig"], "repair": True}
    assert setting_changes(PruneConfig, made, to_dict(PruneConfig(repair=True)) | {"keep": made["keep"]}) == []
    asked = to_dict(PruneConfig(repair=True, repair_tokens=4096, calibration_tokens=4096)) | {"keep": made["keep"]}
    assert setting_changes(PruneConfig, made, asked) == [
        "calibration_tokens was 256000 and is 4096",
        'repair_tokens was "auto" and is 4096',
    ]


@pytest.mark.parametrize("kind", CONFIGS, ids=lambda kind: kind.__name__)
def test_what_was_made_with_the_defaults_of_092ab7b_is_current_under_a_version_that_knows_one_more(kind: type) -> None:
    required = {name for name, default in EARLIER[kind.__name__].items() if default == {"required": True}}
    made = {name: value for name, value in EARLIER[kind.__name__].items() if name not in required}
    tomorrow = dataclasses.make_dataclass(
        "Tomorrow", [("newer", Annotated[str, Before("none")], "all")], bases=(kind,), frozen=True, kw_only=True
    )
    assert setting_changes(tomorrow, made, made | {"newer": "none"}) == []
    assert setting_changes(tomorrow, made, made | {"newer": "all"}) == ['newer was "none" and is "all"']
    assert as_before(tomorrow, made | {"newer": "none"}) == as_before(kind, made)
