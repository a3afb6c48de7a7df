"""Every causal LM of the installed transformers, cut: right, or refused with a reason, and never otherwise.

docs/model_types.md is what a run of all gave. A few types of every family are run again here, the rest with `-m slow`.
"""

import pytest
import transformers
from helpers import ROOT
from model_matrix import KEPT, TABLE, Cell, marks, run_apart, run_type, table_row, written_rows
from model_zoo import TYPES

from compress.prune.rules.fields import VERIFIED_TYPES

FAST = (
    "bert", "deepseek_v3", "gemma3", "gemma3n_text", "gpt_neo", "jamba", "lfm2_moe", "mamba", "minicpm3",
    "modernbert-decoder", "qwen3_moe", "zaya",
)  # fmt: skip
"""Encoders with a head, leading dense layers, composite configs, shared keys and values with per-layer tables, written
out patterns, periods, convolutions, states, scaling by depth, a first layer unlike others, sparse steps, a refusal."""
FEW = ("alternate", "2:3")


@pytest.fixture(scope="module")
def rows() -> dict[str, str]:
    return written_rows(TABLE.read_text(encoding="utf-8"))


def test_the_table_has_every_type_and_at_least_65_that_are_right(rows: dict[str, str]) -> None:
    assert set(TYPES) <= set(rows)
    if f"transformers=={transformers.__version__}" in (ROOT / "constraints.txt").read_text():
        assert sorted(rows) == sorted(TYPES)  # another version knows fewer types, or more
    found = [set(marks(row).values()) for row in rows.values()]
    assert set().union(*found) == {"=", "–"}
    assert sum(marks == {"="} for marks in found) >= 65
    for name, row in rows.items():
        assert set(marks(row).values()) == {"="} or row.split(" | ")[-1].strip(" |"), name


def test_the_types_that_are_cut_unchecked_are_right_in_every_list(rows: dict[str, str]) -> None:
    assert {name for name in VERIFIED_TYPES if set(marks(rows[name]).values()) != {"="}} == set()


@pytest.mark.faults(5)
@pytest.mark.parametrize("model_type", FAST)
def test_a_student_is_its_teacher_without_layers_or_is_refused(model_type: str, rows: dict[str, str]) -> None:
    cells = run_type(model_type, FEW)
    same_as_written(cells, rows[model_type], model_type)


@pytest.mark.slow
@pytest.mark.faults(5)
@pytest.mark.parametrize("model_type", TYPES)
def test_every_type_gives_what_the_table_says(model_type: str, rows: dict[str, str]) -> None:
    cells = run_apart(model_type)
    same_as_written(cells, rows[model_type], model_type)


def same_as_written(cells: dict[str, Cell], row: str, model_type: str) -> None:
    assert {cell.outcome for cell in cells.values()} <= {"right", "refused"}, cells
    assert all(cell.reason for cell in cells.values() if cell.outcome == "refused")
    fresh = dict(zip(cells, table_row(model_type, cells).split(" | ")[1 : 1 + len(cells)], strict=True))
    assert fresh == {keep: mark for keep, mark in marks(row).items() if keep in cells}
    assert set(cells) <= set(KEPT)
