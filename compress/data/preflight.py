"""What can be said of text before it is prepared or read: what refuses it then refuses it now."""

import dataclasses
import functools
from collections.abc import Iterable
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from compress.base.disk import free_bytes
from compress.base.errors import CompressError, Faults, InputError, UsageError, reason_of
from compress.base.progress import say
from compress.base.signals import StopRequest
from compress.base.units import format_bytes
from compress.data.config import DataConfig
from compress.data.sources.hub import HubSource
from compress.data.sources.instructions import Form
from compress.data.sources.sources import Source, asked_of, find_source
from compress.data.sources.stream import Position, Retry, Unavailable, form_of, is_final, read_items
from compress.data.store.chat import Chat, Unfit
from compress.data.store.index import INDEX
from compress.data.store.pictures import check_reader
from compress.data.store.record import wanted_tokens
from compress.data.store.store import TokenStore
from compress.data.store.way import check_options
from compress.model.facts import ModelFacts
from compress.model.lengths import fit, shortest_context
from compress.model.tokenizer import TokenizerSpec, tokenizer_spec

_PATIENCE_ROWS = 2000
_PATIENCE_CHATS = 100


class TextFacts(NamedTuple):
    """What is known of rows of text before there are any."""

    seq_len: int
    num_rows: int | None
    """Training rows; None where they are counted only when the text is prepared."""
    num_heldout: int
    sources: tuple[str, ...] = ()
    """Names of a blend's sources; empty where there is one."""
    marked: bool = False
    """Whether the rows are known to be of conversations."""
    parts: "tuple[TextFacts, ...]" = ()
    """The facts of each source's rows; empty where there is one."""
    pictured: bool = False
    """Whether these are about images."""


def facts_of_store(store: TokenStore) -> TextFacts:
    """The facts of a finished token store."""
    parts = tuple(
        TextFacts(store.seq_len, source["rows"], source["heldout_rows"], marked=store.marked)
        for source in store.index.get("sources", ())
    )
    size = (store.seq_len, store.num_rows, store.num_heldout)
    return TextFacts(*size, store.sources, store.marked, parts, store.pictured)


def facts_of_plan(config: DataConfig) -> TextFacts:
    """The facts of a token store that is to be prepared."""
    wanted = wanted_tokens(config)
    held = sum(part.heldout_sequences for part in config.parts())
    parts = () if config.sources is None else tuple(map(facts_of_plan, config.parts()))
    rows, pictured = wanted and wanted // config.seq_len, config.form == "images"
    return TextFacts(config.seq_len, rows, held, config.names, parts=parts, pictured=pictured)


def fit_rows(config: DataConfig, models: Iterable[ModelFacts | None]) -> DataConfig:
    """The same; or rows as long as all models read, where that is less than `seq_len` is by default, and nobody wrote
    another length. It is said."""
    limit = shortest_context(model.config for model in models if model is not None)
    if config.seq_len != DataConfig.__dataclass_fields__["seq_len"].default:
        return config
    length, _ = fit("Rows of text (data.seq_len)", config.seq_len, 0, limit)
    return dataclasses.replace(config, seq_len=length)


def check_data(config: DataConfig, model: ModelFacts | None, out: Path, faults: Faults) -> TextFacts:
    """Find what would refuse the preparation of `out` with a model's tokenizer, if that is known."""
    tokenizer = None if model is None else model.tokenizer
    forms = [faults.of(functools.partial(check_source, part, tokenizer)) for part in config.parts()]
    if all(form is not None and form.is_text for form in forms):
        faults.of(lambda: check_options(config))
    spec = None if model is None else faults.of(lambda: tokenizer_spec(model.tokenizer))
    if model is not None and config.form == "images":
        faults.of(lambda: check_reader(model.side, model.name))
    if spec is not None:
        faults.of(lambda: check_space(config, spec, out))
    marked = any(form is not None and not form.is_text for form in forms)
    return facts_of_plan(config)._replace(marked=marked)


def check_text(name: str, column: str, faults: Faults) -> None:
    """Find what would refuse to measure on a SOURCE: a token store, or text in a column."""
    if (Path(name) / INDEX).is_file():
        faults.of(lambda: TokenStore.open(name))
    else:
        faults.of(lambda: check_source(DataConfig(dataset=name, text_column=column, tokens=1)))


def require_apart(text: str, out: Path) -> None:
    """Refuse an output that lies in a folder of text, and would be read with it the next time.

    Raises:
        UsageError: it does.
    """
    source = Path(text).expanduser()
    if not source.exists() and "**" in source.parts:  # all folders below the one before
        source = Path(*source.parts[: source.parts.index("**")])
    if source.is_dir() and not (source / INDEX).is_file() and out.resolve().is_relative_to(source.resolve()):
        raise UsageError(f"The output {out} lies in {text}, all of which is read as text: name a place outside of it.")


def check_source(config: DataConfig, tokenizer: Any = None) -> Form | None:
    """Look at the files of the source, and at the first rows of each that is here, or of the first that is not; lay
    out the first conversations, if the tokenizer is known. Returns what its rows hold, None where that is
    not known yet.

    A hub that cannot be reached now says nothing, and may be reached when its turn comes.

    Raises:
        UsageError: options that do not go with the source, files of several formats, no such configuration or split.
        InputError: no such file or dataset, nothing in it that can be read, no text column, or a chat template that
            makes nothing of its conversations.
    """
    source, (name,) = find_source(config), config.datasets
    try:
        source.connect()
        source.unread.tell(name)
        form = form_of(source, asked_of(config), Retry(StopRequest(), tries=0))
        for index in range(1 if isinstance(source, HubSource) else len(source.files)):
            _first_row(source, index, form)
        if not form.is_text and not form.has_images and tokenizer is not None:
            _check_layout(name, source, form, Chat(tokenizer))
        return form
    except CompressError as error:
        if not isinstance(source, HubSource) or not isinstance(error, Unavailable) or is_final(error.__cause__):
            raise
        _say_later(name, error.__cause__)
    except Exception as error:
        if is_final(error):
            raise InputError(f"{name} cannot be read ({reason_of(error)}).") from error
        _say_later(name, error)
    return None


def _say_later(name: str, error: object) -> None:
    say(f"{name} cannot be looked at now ({reason_of(error)}): it will be tried again when its turn comes.")


def _first_row(source: Source, index: int, form: Form) -> None:
    """Read a file until it gives a text or a conversation, or refuses to."""
    with closing(read_items(source, form, Position(index, 0), Retry(StopRequest(), tries=0))) as items:
        for item in islice(items, _PATIENCE_ROWS):
            if item.row.text is not None:
                return


def _check_layout(name: str, source: Source, form: Form, chat: Chat) -> None:
    """Refuse conversations of which the first `_PATIENCE_CHATS` cannot be laid out."""
    with closing(read_items(source, form, Position(0, 0), Retry(StopRequest(), tries=0))) as items:
        texts = [item.row.text for item in islice(items, _PATIENCE_CHATS) if item.row.text is not None]
    found = chat(texts)
    if found and all(isinstance(each, Unfit) for each in found):
        raise InputError(f"None of the first {len(found)} conversations of {name} can be used. The first {found[0]}.")


def check_space(config: DataConfig, spec: TokenizerSpec, out: Path, *, marks: bool = False) -> None:
    """Refuse a store that its disk has no room for, with `marks` a byte a token more.

    Raises:
        UsageError: the tokens asked for take more bytes than are free.
    """
    needed = ((wanted_tokens(config) or 0) + config.heldout_sequences * config.seq_len) * (spec.dtype.itemsize + marks)
    free = free_bytes(out)
    if needed > free:
        raise UsageError(
            f"{out} needs {format_bytes(needed)} and the disk has {format_bytes(free)} free. Name a folder on another "
            "disk, or ask for fewer data.tokens and data.heldout_sequences."
        )
