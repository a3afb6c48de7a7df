"""Whole commands, drawn at random (see `commands_fuzz`): refused in time or done, and nothing of the user's touched."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from fuzz.commands_fuzz import attempt, make_world

FEW, MANY = [*range(12), 301], range(12, 312)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("commands") / "world")


@pytest.mark.parametrize("numbers", [FEW, pytest.param(MANY, marks=pytest.mark.slow)], ids=["few", "many"])
def test_commands_drawn_at_random(
    numbers: Sequence[int], world: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    refused, failed, total = 0, {}, 0.0
    for number in numbers:
        done, seconds, faults = attempt(number, world, tmp_path)
        refused += done.returncode != 0
        total += seconds
        if faults:
            failed[number] = (faults, done.stderr[-400:])
    record_property("fuzz", ["commands", len(numbers), len(numbers) - refused, refused, total])
    assert failed == {}
