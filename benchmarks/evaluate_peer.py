"""lm-eval's own command on local data: `evaluate_peer.py DATASETS_ROOT run --model hf ...`

Nothing of it is changed but where `datasets.load_dataset` finds ORG/NAME, so that both sides read the same files.
"""

import sys
from pathlib import Path

from lm_eval.__main__ import cli_evaluate

from compress.evaluate.harness.local_data import local_datasets

if __name__ == "__main__":
    root = Path(sys.argv.pop(1))
    with local_datasets(root):
        cli_evaluate()
