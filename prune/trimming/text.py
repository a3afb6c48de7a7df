"""What a text uses of a vocabulary, and whether a trimmed tokenizer says the same of it."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.base.errors import CompressError, InputError
from compress.base.progress import progress_bar
from compress.data import DataConfig, Documents

_HELD_OUT_EVERY = 20
_COMPARED = 1000
"""Documents of either kind that are kept to be encoded again."""
_ANY_TEXT = (
    "Any text at all: 3.14 × 2² ≠ 0x1F\n\tkeeps its\r\nspaces    and \u00a0 lines.",
    "Zażółć gęślą jaźń, œuvre à l’été, Straße, İstanbul, năm mới.",
    "Съешь ещё этих мягких французских булок. Ξεσκεπάζω τὴν ψυχοφθόρα βδελυγμία.",
    "色は匂へど散りぬるを 我が世誰ぞ常ならむ。天地玄黃，宇宙洪荒。키스의 고유조건은",
    "نص حكيم له سر قاطع דג סקרן שט בים ऋषियों को सताने वाले เป็นมนุษย์สุดประเสริฐ",
    "😀🎉👩‍👩‍👧‍👦 🇺🇳 e\u0301 \u200d \U0001f9ff 𝔘𝔫𝔦𝔠𝔬𝔡𝔢",
)
"""Other languages, emoji and white space, which only letters or bytes spell."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Usage:
    """What was counted of a text: all documents but every twentieth."""

    counts: NDArray[np.int64]
    """[ids]: how often each is used."""
    documents: int
    counted: list[tuple[int, str]]
    """Some of the documents that were counted, and the number of the source of each."""
    heldout: list[tuple[int, str]]
    """Some of those that were not."""


def count_tokens(parts: Sequence[DataConfig], tokenizer: Any, num_ids: int, tokens: int) -> Usage:
    """Count the ids of the text of all `parts`, of each the first documents that have its part of so many `tokens`.

    Raises:
        InputError: a source cannot be used, or holds no text.
    """
    counts = np.zeros(num_ids, np.int64)
    counted: list[tuple[int, str]] = []
    heldout: list[tuple[int, str]] = []
    seen = 0
    share = -(-tokens // len(parts))
    with progress_bar("counting tokens", share * len(parts), unit="tokens") as bar:
        for number, part in enumerate(parts):
            before = seen
            for document, ids in _encoded(part, tokenizer, share):
                out = seen % _HELD_OUT_EVERY == _HELD_OUT_EVERY - 1
                kept = heldout if out else counted
                if len(kept) < _COMPARED and (out or seen % _HELD_OUT_EVERY == 0):
                    kept.append((number, document))
                if not out:
                    counts += np.bincount(ids, minlength=num_ids)
                bar.advance(len(ids))
                seen += 1
            if seen == before:
                raise InputError(f"{', '.join(part.datasets)} holds no text to count tokens of.")
    return Usage(counts=counts, documents=seen, counted=counted, heldout=heldout)


def _encoded(part: DataConfig, tokenizer: Any, tokens: int) -> Iterator[tuple[str, NDArray[Any]]]:
    """Documents with their ids, until these are `tokens`."""
    source = Documents(part, tokenizer)
    for documents in source.batches():
        for document, ids in zip(documents, source.encode(documents), strict=True):
            if ids is not None:
                yield document, ids
                tokens -= len(ids)
            if tokens <= 0:
                return


def compare_tokens(
    parts: Sequence[DataConfig], usage: Usage, whole: Any, trimmed: Any, new: Mapping[int, int]
) -> dict[str, Any]:
    """What the `trimmed` tokenizer, in which ids are `new` ones, makes of text, beside the `whole` one.

    Of documents that were counted and of those that were not: how many were compared, the share that got the same
    pieces, tokens by either, and UTF-8 bytes.

    Raises:
        CompressError: it does not give a text back that the whole one does.
    """
    for text in _ANY_TEXT:
        ids = [tokenizer(text, add_special_tokens=False).input_ids for tokenizer in (whole, trimmed)]
        _require_same(whole, trimmed, ids[0], ids[1])
    found = {}
    for name, documents in (("counted", usage.counted), ("heldout", usage.heldout)):
        found[name] = _compared(parts, documents, whole, trimmed, new)
    return found


def _compared(
    parts: Sequence[DataConfig], documents: Sequence[tuple[int, str]], whole: Any, trimmed: Any, new: Mapping[int, int]
) -> dict[str, Any]:
    same, before, after, size = 0, 0, 0, 0
    for number, part in enumerate(parts):
        texts = [document for place, document in documents if place == number]
        both = zip(*(Documents(part, tokenizer).encode(texts) for tokenizer in (whole, trimmed)), strict=True)
        for text, (old, made) in zip(texts, both, strict=True):
            if old is None or made is None:
                raise CompressError(f"The trimmed tokenizer cannot lay out a conversation of {part.datasets[0]}.")
            _require_same(whole, trimmed, old.tolist(), made.tolist())
            same += [new.get(token) for token in old.tolist()] == made.tolist()
            before, after, size = before + len(old), after + len(made), size + len(text.encode())
    return {
        "documents": len(documents),
        "same_pieces": same / len(documents) if documents else None,
        "tokens_before": before,
        "tokens_after": after,
        "bytes": size,
    }


def _require_same(whole: Any, trimmed: Any, old: Sequence[int], new: Sequence[int]) -> None:
    texts = [tokenizer.backend_tokenizer.decode(ids, False) for tokenizer, ids in ((whole, old), (trimmed, new))]
    if texts[0] != texts[1]:
        at = next(i for i, pair in enumerate(zip(*(text + "\0" for text in texts), strict=False)) if pair[0] != pair[1])
        raise CompressError(
            f"The trimmed tokenizer gives {texts[1][at : at + 20]!r} back where the whole one gives "
            f"{texts[0][at : at + 20]!r}, so this kind of tokenizer cannot be trimmed here; nothing was written. "
            "Please report its tokenizer.json."
        )
