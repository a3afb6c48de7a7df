"""A run folder for the tests of the report."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from report_world import DEMO, make_run


@pytest.fixture
def fake_run(tmp_path: Path) -> Callable[..., Path]:
    """Make a run: `fake_run(tasks)`; see `make_run`."""

    def make(tasks: dict[str, tuple[Any, ...]] | None = None, **options: Any) -> Path:
        return make_run(tmp_path / "run", DEMO if tasks is None else tasks, **options)

    return make
