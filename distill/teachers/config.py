"""Options of a cache of the teacher's signals."""

from typing import Annotated, Literal

from compress.base.config import config
from compress.base.currency import FREE


@config
class CacheConfig:
    """What is kept of the teacher for each token of a store, so that training runs it no more: {kind: hidden}."""

    kind: Literal["hidden"] = "hidden"
    """hidden: the last hidden state, with the output head once: a training from it is the live one, bit for bit."""
    folder: Annotated[str | None, FREE] = None
    """Where the cache lies, for several runs to share; by default in the run's folder, as teacher-cache."""
