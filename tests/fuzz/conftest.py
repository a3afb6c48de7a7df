"""The number of inputs tried, by target, at the end of the test session."""

from typing import Any

import pytest
from fuzz.harness import Tally

_TALLIES = pytest.StashKey[dict[str, Tally]]()


@pytest.fixture(scope="session")
def tallies(pytestconfig: pytest.Config) -> dict[str, Tally]:
    """Where the tests count."""
    return pytestconfig.stash.setdefault(_TALLIES, {})


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the counts."""
    tallies = config.stash.get(_TALLIES, {})
    if not tallies:
        return
    terminalreporter.section("fuzz")
    for name, tally in tallies.items():
        told = f"{tally.inputs} inputs, {tally.values} read and {tally.refused} refused, {tally.seconds:.1f} s"
        terminalreporter.line(f"{name:<28} {told}")
    terminalreporter.line(f"{'all':<28} {sum(tally.inputs for tally in tallies.values())} inputs")
