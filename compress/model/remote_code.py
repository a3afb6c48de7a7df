"""Whether model folders may bring code of their own, which transformers then runs: never, unless the user says so.

`trust_remote_code: true` under a recipe's `teacher`, `--trust-remote-code` on a command, or `with trusting(True):`.
"""

from collections.abc import Iterator
from contextlib import contextmanager

_trusted = False


def trusted() -> bool:
    """What every loader of transformers is told as `trust_remote_code`."""
    return _trusted


@contextmanager
def trusting(trust: bool) -> Iterator[None]:
    """While the block runs, let models of the whole process bring code, or not."""
    global _trusted
    before, _trusted = _trusted, trust
    try:
        yield
    finally:
        _trusted = before
