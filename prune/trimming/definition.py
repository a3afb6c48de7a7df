"""A fast tokenizer's definition (the content of tokenizer.json), and the same with fewer tokens under new ids."""

import dataclasses
import json
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from compress.base.errors import InputError
from compress.prune.trimming.pieces import Content, Pieces, closed, pieces_of

NewIds = Mapping[int, int]
"""New ids by old ones, of the tokens that stay."""


@dataclasses.dataclass(frozen=True)
class Definition:
    """The definition of the tokenizer that the user calls `name`."""

    content: Content
    name: str
    pieces: Pieces

    @classmethod
    def of(cls, tokenizer: Any, name: str) -> "Definition":
        """That of a transformers tokenizer.

        Raises:
            InputError: it is no fast one, or of a kind that cannot be rebuilt.
        """
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise InputError(f"The tokenizer {name} has no fast form (tokenizer.json), which trimming needs.")
        content = json.loads(backend.to_str())
        _processors(content.get("post_processor"), name)
        return cls(content, name, pieces_of(content["model"], name))

    @cached_property
    def ids(self) -> dict[str, int]:
        """Every token's id."""
        return {**self.pieces.ids, **{token["content"]: token["id"] for token in self.content["added_tokens"]}}

    @cached_property
    def tokens(self) -> frozenset[int]:
        """The ids of all tokens."""
        return frozenset(self.ids.values())

    def always(self) -> set[int]:
        """The ids that stay whatever the text is: special tokens, what the tokenizer itself puts around texts, and the
        alphabet, with all that these are made of."""
        special = {token["id"] for token in self.content["added_tokens"] if token["special"]}
        padding, processors = self.content.get("padding"), _processors(self.content.get("post_processor"), self.name)
        around = {number for each in processors for number in _ids(each)}
        filling = {padding["pad_id"]} if padding else set()
        return closed(self.pieces, special | around | filling | self.pieces.alphabet())

    def rebuilt(self, new: NewIds) -> Content:
        """The definition of the tokens that stay."""
        added = [{**token, "id": new[token["id"]]} for token in self.content["added_tokens"] if token["id"] in new]
        padding = self.content.get("padding")
        return {
            **self.content,
            "model": self.pieces.rebuilt(new),
            "added_tokens": sorted(added, key=lambda token: token["id"]),
            "post_processor": _renumbered(self.content.get("post_processor"), new),
            "padding": padding and {**padding, "pad_id": new[padding["pad_id"]]},
        }


_WITHOUT_IDS = ("ByteLevel",)
_PAIRS = ("BertProcessing", "RobertaProcessing")


def _processors(processor: Content | None, name: str) -> list[Content]:
    """The parts of a post-processor.

    Raises:
        InputError: one is of a kind that is not known.
    """
    if processor is None:
        return []
    if processor["type"] == "Sequence":
        return [part for each in processor["processors"] for part in _processors(each, name)]
    if processor["type"] not in ("TemplateProcessing", *_WITHOUT_IDS, *_PAIRS):
        raise InputError(
            f"The tokenizer {name} has a post-processor of the kind {processor['type']}, whose ids this tool does not "
            "know; it cannot be trimmed."
        )
    return [processor]


def _ids(processor: Content) -> list[int]:
    if processor["type"] == "TemplateProcessing":
        return [number for each in processor["special_tokens"].values() for number in each["ids"]]
    return [] if processor["type"] in _WITHOUT_IDS else [processor["sep"][1], processor["cls"][1]]


def _renumbered(processor: Content | None, new: NewIds) -> Content | None:
    if processor is None or processor["type"] in _WITHOUT_IDS:
        return processor
    if processor["type"] == "Sequence":
        return {**processor, "processors": [_renumbered(each, new) for each in processor["processors"]]}
    if processor["type"] in _PAIRS:
        return {**processor, **{at: [processor[at][0], new[processor[at][1]]] for at in ("sep", "cls")}}
    tokens = processor["special_tokens"]
    special = {text: {**token, "ids": [new[number] for number in token["ids"]]} for text, token in tokens.items()}
    return {**processor, "special_tokens": special}
