"""Text in, a token store out: sources, preparation, reading.

Only the config is imported at once: options are read, and explained, without NumPy and Arrow.
"""

from typing import TYPE_CHECKING, Any

from compress.data.config import DataConfig

if TYPE_CHECKING:
    from compress.data.preflight import (
        TextFacts,
        check_data,
        check_text,
        facts_of_plan,
        facts_of_store,
        fit_rows,
        require_apart,
    )
    from compress.data.preparing import (
        changes_of_begun,
        changes_since,
        named_store,
        options_unlike,
        prepare,
        store_inputs,
        store_outputs,
    )
    from compress.data.sample import Documents, framing_for, text_fingerprint, text_rows
    from compress.data.sources.hub import HubSource
    from compress.data.sources.sources import LocalSource, Source, find_source
    from compress.data.store.framing import check_framing
    from compress.data.store.index import INDEX
    from compress.data.store.store import TokenStore

__all__ = [
    "INDEX",
    "DataConfig",
    "Documents",
    "HubSource",
    "LocalSource",
    "Source",
    "TextFacts",
    "TokenStore",
    "changes_of_begun",
    "changes_since",
    "check_data",
    "check_framing",
    "check_text",
    "facts_of_plan",
    "facts_of_store",
    "find_source",
    "fit_rows",
    "framing_for",
    "named_store",
    "options_unlike",
    "prepare",
    "require_apart",
    "store_inputs",
    "store_outputs",
    "text_fingerprint",
    "text_rows",
]

_HOMES = {
    "INDEX": "store.index",
    "Documents": "sample",
    "HubSource": "sources.hub",
    "LocalSource": "sources.sources",
    "Source": "sources.sources",
    "TextFacts": "preflight",
    "TokenStore": "store.store",
    "changes_of_begun": "preparing",
    "changes_since": "preparing",
    "check_data": "preflight",
    "check_framing": "store.framing",
    "check_text": "preflight",
    "facts_of_plan": "preflight",
    "facts_of_store": "preflight",
    "find_source": "sources.sources",
    "fit_rows": "preflight",
    "named_store": "preparing",
    "options_unlike": "preparing",
    "prepare": "preparing",
    "framing_for": "sample",
    "text_rows": "sample",
    "require_apart": "preflight",
    "store_inputs": "preparing",
    "store_outputs": "preparing",
    "text_fingerprint": "sample",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
