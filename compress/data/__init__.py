"""Text in, a token store out: sources, preparation, reading."""

from compress.data.config import DataConfig
from compress.data.prepare import changes_of_begun, changes_since, options_unlike, prepare, store_inputs
from compress.data.sample import read_start, text_fingerprint
from compress.data.sources.hub import HubSource
from compress.data.sources.sources import LocalSource, Source, find_source
from compress.data.store.store import INDEX, TokenStore

__all__ = [
    "INDEX",
    "DataConfig",
    "HubSource",
    "LocalSource",
    "Source",
    "TokenStore",
    "changes_of_begun",
    "changes_since",
    "find_source",
    "options_unlike",
    "prepare",
    "read_start",
    "store_inputs",
    "text_fingerprint",
]
