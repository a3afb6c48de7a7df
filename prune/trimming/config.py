"""The whole of what `compress trim`, or a recipe's `trim:` section, can be asked."""

from typing import Annotated

from compress.base.config import config
from compress.base.currency import PLACE
from compress.prune.parts import AtLeastOne


@config
class TrimConfig:
    """Which text says what of the vocabulary is used, and how much of it stays."""

    data: Annotated[str | None, PLACE] = None
    """SOURCE: `hub:ORG/NAME[:CONFIG]`, a local file, folder or glob as for `data.dataset`. In a recipe None is the
    run's own text."""
    text_column: str = "text"
    """Column (or JSON key) that holds the text."""
    data_tokens: AtLeastOne = 20_000_000
    """Tokens of the text to count, from its start; all there are where it is shorter."""
    keep_tokens: AtLeastOne | None = None
    """How many ids stay: special tokens, the alphabet, then those that the text uses most with the pieces they are made
    of, then others from the lowest on. By default all that the text uses, and no more than `multiple_of` asks for."""
    multiple_of: AtLeastOne = 64
    """Without `keep_tokens`, so many ids stay that their number is a multiple of this, for the kernels of GPUs."""
    check: bool = True
    """Compare the logits of both models on ids that stay (needs 5 bytes a parameter)."""
