"""Real pretrained models for slow tests: `REAL_TEACHERS` names a folder with them.

python ../shared/tools/real_teacher.py gemma DIR/gemma       # and smollm2 DIR/smollm2
REAL_TEACHERS=DIR pytest -m slow tests/data/test_real_framing.py tests/evaluate/test_real_chat.py
"""

import os
from pathlib import Path

import pytest
from helpers import SHARED_DATA


def real_teacher(name: str) -> Path:
    """The folder of `smollm2` or `gemma`; skips the test where it, or the data for such tests, is absent."""
    folder = Path(os.environ.get("REAL_TEACHERS", "")) / name
    if "REAL_TEACHERS" not in os.environ or not folder.is_dir() or not SHARED_DATA.is_dir():
        pytest.skip("REAL_TEACHERS names no folder with this teacher, or ../shared/data is absent")
    return folder
