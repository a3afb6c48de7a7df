"""Whatever is in the files a user gives: a value or a clear refusal, in bounded time and memory."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from fuzz.harness import Tally, Target, fuzz
from fuzz.targets import make_targets

NAMES = (
    "recipe: random text",
    "recipe: random structure",
    "recipe: real ones damaged",
    "recipe: --set",
    "layer spec",
    "data: random files",
    "data: real ones damaged",
    "token store",
    "model folder",
    "GGUF header",
    "checkpoint",
    "report",
    "compare",
    "verify",
    "command: prune",
    "command: run --dry-run",
    "command: report, verify",
    "command: random arguments",
)
FEW = {"checkpoint": 4, "verify": 6, "report": 15, "compare": 15, "command: report, verify": 8}


@pytest.fixture(scope="session")
def targets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Target]:
    made = make_targets(tmp_path_factory.mktemp("fuzz") / "world")
    assert set(made) == set(NAMES)
    return made


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative paths that the fuzz makes up lead into an empty folder, and hub names to no network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def try_inputs(
    name: str, targets: dict[str, Target], record_property: Callable[[str, object], None]
) -> Callable[..., None]:
    """Fuzz the target, and tell what is printed at the end of the session how often it was tried."""

    def attempt(examples: int, *, random: bool) -> None:
        tally = Tally()
        try:
            fuzz(targets[name], examples, tally, random=random)
        finally:
            record_property("fuzz", [name, *dataclasses.astuple(tally)])

    return attempt


@pytest.mark.parametrize("name", NAMES)
def test_a_few_inputs_always_the_same(name: str, try_inputs: Callable[..., None]) -> None:
    try_inputs(FEW.get(name, 25), random=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_thousands_of_inputs_new_each_time(name: str, try_inputs: Callable[..., None]) -> None:
    try_inputs(300 if name in FEW else 2000, random=True)
