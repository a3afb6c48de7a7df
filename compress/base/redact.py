"""Secrets kept out of whatever is printed or written: messages, tracebacks, manifests."""

import os
import re

_SECRET_NAMES = re.compile(r"(TOKEN|KEY|SECRET|PASSWORD)\Z", re.IGNORECASE)
_HUB_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}\b")
_SHORTEST = 8
_HIDDEN = "[hidden]"


def redact(text: str) -> str:
    """`text` with every secret replaced.

    A secret is the value (of 8 characters or more) of an environment variable whose name ends in TOKEN, KEY, SECRET or
    PASSWORD, as it is or as Python's `repr` shows it, and whatever looks like a Hugging Face token.
    """
    for name, value in os.environ.items():
        value = value.strip()
        if _SECRET_NAMES.search(name) and len(value) >= _SHORTEST:
            text = text.replace(value, _HIDDEN).replace(repr(value)[1:-1], _HIDDEN)
    return _HUB_TOKEN.sub(_HIDDEN, text)
