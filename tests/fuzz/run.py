"""Fuzz every target: `python tests/fuzz/run.py --examples N [--only NAME]` prints what was tried and what failed."""

import argparse
import os
import sys
import tempfile
import traceback
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fuzz.harness import Tally, fuzz
from fuzz.targets import make_targets


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=1000, help="inputs a target")
    parser.add_argument("--only", default="", help="targets whose name contains this")
    options = parser.parse_args()
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        write("target", "inputs", "values", "refused", "failures", "seconds")
        for name, target in make_targets(Path(folder, "world")).items():
            if options.only not in name:
                continue
            tally, failed = Tally(), 0
            try:
                fuzz(target, options.examples, tally, random=True)
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                failed = len(error.exceptions) if isinstance(error, BaseExceptionGroup) else 1
                traceback.print_exc()
            failures += failed
            write(name, tally.inputs, tally.values, tally.refused, failed, round(tally.seconds, 1))
        os.chdir("/")
    return 1 if failures else 0


def write(name: str, *columns: object) -> None:
    sys.stdout.write(f"{name:<28}" + "".join(f"{column!s:>10}" for column in columns) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
