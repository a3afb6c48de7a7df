"""What tests of the evaluation share: benchmark data of the hub where it is at hand, and lm-eval's requests."""

from typing import Any

import pytest
from helpers import SHARED_DATA

HUB = SHARED_DATA / "hub"
ON_REAL_DATA = [
    pytest.mark.slow,
    pytest.mark.skipif(not HUB.is_dir(), reason=f"needs benchmark data in {HUB}"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
"""The marks of a module that scores it."""


class Request:
    """What a scorer reads of an lm-eval instance."""

    def __init__(self, *arguments: Any) -> None:
        self.args = arguments
        self.task_name = "quiz"
