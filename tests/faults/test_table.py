"""docs/reliability.md names, for each of the 25 cases, tests that exist and are marked with its number."""

import ast
import re
from pathlib import Path

from helpers import ROOT

PAGE = ROOT / "docs" / "reliability.md"
NUMBERS = set(range(1, 26))


def named_in_the_table() -> dict[int, set[str]]:
    """Number -> `tests/FILE::TEST` of each row `| N | what goes wrong | what ours does | tests |`."""
    rows = [line.strip("|").split("|") for line in PAGE.read_text().splitlines() if re.match(r"\| *[0-9]+ *\|", line)]
    return {int(row[0]): set(re.findall(r"`(tests/[\w/]+\.py::\w+)`", row[3])) for row in rows}


def marked(file: Path) -> dict[str, set[int]]:
    """Test -> numbers of its `faults` mark."""
    found = {}
    for function in ast.parse(file.read_text()).body:
        if not isinstance(function, ast.FunctionDef):
            continue
        marks = [d for d in function.decorator_list if ast.unparse(d).startswith("pytest.mark.faults(")]
        numbers = {ast.literal_eval(argument) for mark in marks if isinstance(mark, ast.Call) for argument in mark.args}
        found[function.name] = numbers
    return found


def test_the_table_names_every_case_and_its_marked_tests() -> None:
    table, expected = named_in_the_table(), {number: set() for number in NUMBERS}
    for file in (ROOT / "tests").rglob("test_*.py"):
        for name, numbers in marked(file).items():
            assert numbers <= NUMBERS, name
            for number in numbers:
                expected[number].add(f"{file.relative_to(ROOT).as_posix()}::{name}")
    assert all(expected.values())
    assert table == expected


def test_every_test_named_anywhere_on_the_page_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", PAGE.read_text())
    assert len(named) > 25
    for file, name in named:
        assert (ROOT / file).is_file(), file
        assert not name or name in marked(ROOT / file), f"{file}::{name}"
