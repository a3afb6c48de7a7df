"""A short soak; the long one is `python tests/soak.py --kills 200`."""

import re
import subprocess
import sys

import pytest
from helpers import ROOT


@pytest.mark.slow
@pytest.mark.faults(1, 2, 8)
@pytest.mark.parametrize("options", [["--kills", "8"], ["--kills", "3", "--fresh-processes"]])
def test_a_short_soak_finds_nothing(options: list[str]) -> None:
    command = [sys.executable, str(ROOT / "tests" / "soak.py"), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    counted = re.search(r"([0-9]+) kills over ([0-9]+) finished runs", done.stdout)
    assert counted is not None
    assert int(counted[1]) >= int(options[1])
    assert int(counted[2]) >= 1
    assert "; 0 mismatches" in done.stdout
