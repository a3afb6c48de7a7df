"""lm-eval's command line with our backend: `python -m compress.evaluate.lm_eval_cli --model compress ...`

lm-eval finds models in a table of its own and has no plug-ins, so its command has to be started from here; everything
after the module's name is lm-eval's (`--model_args pretrained=...`, `--tasks`, `--output_path`).
"""

import sys

from lm_eval.__main__ import cli_evaluate

import compress.evaluate.harness.registered  # noqa: F401
from compress.base.errors import CompressError
from compress.base.progress import say
from compress.evaluate.harness.patches import cached_templates


def main() -> None:
    """lm-eval's command line, with its templates compiled once."""
    with cached_templates():
        try:
            cli_evaluate()
        except CompressError as error:
            say(f"Error: {error}")
            sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
