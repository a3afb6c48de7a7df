"""Before any test imports anything."""

import os
from pathlib import Path

# Triton reads it once, when it is imported. On a machine with a GPU the kernels are compiled instead.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")
