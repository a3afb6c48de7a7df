"""Text to a token store, or the store that is there already."""

import functools
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from compress.base.config import build_from, to_dict
from compress.base.currency import Inputs, Missing, input_changes, inputs_now, setting_changes
from compress.base.disk import read_json
from compress.base.errors import DISK_FULL, CompressError, UsageError
from compress.base.outputs import Output, has_manifest, require_outputs
from compress.base.signals import stop_on_signal
from compress.data.config import DataConfig
from compress.data.sources.sources import find_source
from compress.data.store.blend import part_folder, parts_of
from compress.data.store.chat import template_sha256
from compress.data.store.framing import asked_framing
from compress.data.store.index import INDEX
from compress.data.store.making import Maker
from compress.data.store.partial import begun, is_begun, owned_folder, partial_of
from compress.data.store.record import identity
from compress.data.store.store import TokenStore
from compress.model.tokenizer import find_tokenizer, load_spec, tokenizer_fingerprint, tokenizer_spec

_OF_NO_CONSEQUENCE = ("dataset", "num_proc")
"""Options that may be others than those of the store: where it is itself, and a matter of speed."""


def prepare(
    config: DataConfig,
    tokenizer: Path | str,
    out: Path,
    *,
    reader: Path | str | None = None,
    visible: bool = True,
) -> TokenStore:
    """Make the token store `out`, or go on making it, or open it when it is there and made from the same.

    Documents are tokenized as plain text, framed as the tokenizer frames a text and followed by EOS, and packed without
    gaps into rows of `seq_len` tokens, which begin with BOS where the `reader` reads them better so. Conversations are
    laid out by the tokenizer's chat template and packed whole, what is left of a row filled up. Of a blend each source
    is a store of its own within `out` (see `compress.data.store.blend`).
    Held-out documents (see `HeldOutPool`) are packed apart. The files are the same however often the preparation
    was cut and continued, on however many cores. A failure leaves nothing of what this call began, and
    all of what an earlier one saved.

    Args:
        tokenizer: a model folder (a bare tokenizer.json will do) or a hub model.
        reader: the model, a folder, whose loss decides what rows begin with: the teacher of a training. By default it
            is that of the tokenizer, if there are weights beside it.
        visible: whether to show a progress bar.

    Raises:
        UsageError: `out` holds another store (the message says what differs) or something else, or the disk is small.
        InputError: the source or the tokenizer cannot be used, or there is too little text.
        InterruptedRun: stopped by a signal after saving; calling again continues.
    """
    config = build_from(DataConfig, to_dict(config), "the data options")
    if (out / INDEX).is_file():
        if differing := changes_since(out, config, tokenizer):
            raise UsageError(
                f"{out} holds a token store made from something else: {'; '.join(differing)}. Name another folder, or "
                "remove this one to prepare it anew."
            )
        return TokenStore.open(out)
    if differing := changes_of_begun(config, lambda: tokenizer, out):
        folder = partial_of(out)
        raise UsageError(
            f"{folder} is the beginning of another store: {'; '.join(differing)}. Go back to that, name another "
            f"folder, or move {folder} away."
        )
    words = find_tokenizer(tokenizer)
    spec = tokenizer_spec(words)
    asked_framing(config.bos, spec)
    require_outputs(*store_outputs(out))
    with stop_on_signal() as stop, owned_folder(out) as folder:
        make = Maker(words, spec, Path(reader or tokenizer), stop, visible=visible)
        try:
            if config.sources is None:
                make.store(config, out, folder)
            else:
                make.blend(config, out, folder)
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            raise CompressError(
                f"No space is left on the device of {out}. Free some and run the same command again: what is "
                "saved is kept."
            ) from error
    return TokenStore.open(out)


def named_store(config: DataConfig) -> Path | None:
    """The token store that a config names in place of text."""
    place = Path(config.datasets[0])
    return place if config.sources is None and (place / INDEX).is_file() else None


def store_outputs(out: Path) -> list[Output]:
    """What the preparation of `out` writes, in the order in which a run moves it aside."""
    is_index = has_manifest("format", "fingerprint")
    return [
        Output(partial_of(out), "an unfinished token store", is_begun, folder=True),
        Output(out, "a token store", lambda folder: is_index(folder / INDEX), folder=True),
    ]


def changes_since(out: Path, config: DataConfig, tokenizer: Path | str) -> list[str]:
    """What differs between the finished store `out` and one made from this config, tokenizer and source now."""
    made = TokenStore.open(out).index["manifest"]
    now = inputs_now(store_inputs(config, lambda: tokenizer, out))
    return setting_changes(DataConfig, made["config"], to_dict(config)) + input_changes(made["inputs"], now)


def store_inputs(config: DataConfig, tokenizer: Callable[[], Path | str], out: Path) -> Inputs:
    """What the finished store `out` would be made from now; a source that did not change keeps its recorded hash."""

    def source() -> str:
        index = TokenStore.open(out).index
        try:
            now, made = [find_source(part) for part in config.parts()], parts_of(index["source"])
            same = len(now) == len(made) and all(source.matches(then) for source, then in zip(now, made, strict=True))
        except CompressError as error:
            raise Missing(f"the text is not there ({error})") from error
        recorded: str = index["manifest"]["inputs"]["source"]
        return recorded if same else "other files, or their content changed"

    words = functools.cache(lambda: find_tokenizer(tokenizer()))

    def template() -> str | None:
        return template_sha256(words()) if TokenStore.open(out).marked else None

    return {"tokenizer": lambda: tokenizer_fingerprint(words()), "source": source, "chat template": template}


def changes_of_begun(config: DataConfig, tokenizer: Callable[[], Path | str], out: Path) -> list[str]:
    """What differs between the preparation of `out` that an earlier process began, and one that would begin now."""
    made = begun(out)
    if made is None:
        return []
    sha256 = load_spec(tokenizer()).sha256
    found = setting_changes(DataConfig, made["identity"], identity(config, sha256))
    if config.sources is None:
        return found + ([] if _is_same(config, made) else ["the source is another"])
    if found and ("fingerprint" in made or made["identity"].get("sources") is None):
        return found  # of a whole blend, or of what is none
    return _changes_of_sources(config, sha256, partial_of(out))


def _changes_of_sources(config: DataConfig, tokenizer_sha256: str, folder: Path) -> list[str]:
    """What differs between those sources of a blend that lie in a folder, finished or begun, and the config's."""
    found = []
    for number, (name, part) in enumerate(zip(config.names, config.parts(), strict=True)):
        place = part_folder(folder, number)
        made = read_json(place / INDEX) if (place / INDEX).is_file() else begun(place)
        if made is None:
            continue
        changed = setting_changes(DataConfig, made["identity"], identity(part, tokenizer_sha256))
        found += [f"source {name}: {change}" for change in changed]
        if not _is_same(part, made):
            found.append(f"the source {name} is another")
    further = part_folder(folder, len(config.names))
    if further.exists() or partial_of(further).exists():
        found.append(f"there were more than {len(config.names)} sources")
    return found


def _is_same(config: DataConfig, made: Mapping[str, Any]) -> bool:
    """Whether a source is as it was when a preparation of it, which `made` is of, began."""
    try:
        source = find_source(config, made.get("commit"))
        complete = "fingerprint" in made
        return source.matches(made["source"]) if complete else source.listing() == made["source"]
    except CompressError:
        return True  # what is wrong with the source is said when it is read


def options_unlike(out: Path, config: DataConfig, given: Collection[str]) -> list[str]:
    """Which of the `given` data options the finished store `out` was not made with, and what they were."""
    index = TokenStore.open(out).index
    made = {**index["manifest"]["config"], **index["source"]}
    return [
        f"data.{name} was {made.get(name)!r} and is {value!r}"
        for name, value in to_dict(config).items()
        if name in given and name not in _OF_NO_CONSEQUENCE and made.get(name) != value
    ]
