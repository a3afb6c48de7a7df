"""Conversations about images as documents of a token store: each has a row to itself, and a record beside it.

A row's ids are what a processor makes of the rendered text and its images, whose places it widens to as many tokens as
the language model is given states. Pixels are not stored: the record has the text and the images as they came, and the
same processor makes pixels of them when the row is read.
"""

import base64
import dataclasses
import io
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from compress.base.errors import InputError, UsageError, reason_of
from compress.data.sources.instructions import NO_ANSWER
from compress.data.store.chat import Chat, Rendered, Unfit
from compress.data.store.conversations import NO_ANSWER_LEFT, TOO_LONG
from compress.data.store.encode import DocumentEncoder, Ids, Pictured
from compress.data.store.layout import RowLayout, TextRows
from compress.data.store.marks import filler, ids_of, marked, marks_of
from compress.model.kinds import sees_images
from compress.model.load import load_config
from compress.model.vision import Inputs, load_processor, model_inputs, processed, processor_sha256

PROCESSOR = "processor_sha256"
"""The field of an index that says which processor makes the pixels."""
_HEAD = 4
"""Bytes of a record that say how long the JSON before its images is."""
_REFUSED = {"paligemma": "it reads a prompt both ways, and its processor writes prompt and answer in a way of its own"}


class Picture(NamedTuple):
    """What a row's pixels are made of."""

    text: str
    """The conversation as its template has it, with one placeholder for each image."""
    images: tuple[bytes, ...]
    """Image files."""

    def record(self) -> bytes:
        """As it is stored."""
        head = json.dumps({"text": self.text, "bytes": [len(image) for image in self.images]}).encode()
        return b"".join([len(head).to_bytes(_HEAD, "little"), head, *self.images])

    @classmethod
    def read(cls, record: bytes) -> "Picture":
        """What `record` made."""
        start = _HEAD + int.from_bytes(record[:_HEAD], "little")
        head = json.loads(record[_HEAD:start])
        ends = np.cumsum([start, *head["bytes"]])
        return cls(head["text"], tuple(record[a:b] for a, b in itertools.pairwise(ends)))


def opened(images: Sequence[bytes]) -> list[Any]:
    """Image files as PIL's images, in RGB.

    Raises:
        Exception: whatever PIL raises where one is none.
    """
    from PIL import Image

    return [Image.open(io.BytesIO(image)).convert("RGB") for image in images]


def encoded(processor: Any, picture: Picture, **options: Any) -> dict[str, Any]:
    """What the processor makes of a row. BOS is put before a text whose template does not write it, as transformers'
    `apply_chat_template` does."""
    bos = processor.tokenizer.bos_token
    adds = bos is None or not picture.text.startswith(bos)
    return processed(processor, picture.text, opened(picture.images), add_special_tokens=adds, **options)


def check_reader(folder: Path, name: str) -> None:
    """Refuse rows with images for a model that cannot be given them.

    Raises:
        UsageError: it sees none, or it is of a type whose rows are made otherwise; or as `load_processor`.
        InputError: as `load_processor`; or it has no chat template.
    """
    config = load_config(folder)
    if not sees_images(config):
        raise UsageError(
            f"data.form: images is for vision-language models, and {name} ({config.model_type}) is none. Leave it out "
            "to learn from the text of conversations alone."
        )
    if config.model_type in _REFUSED:
        raise UsageError(
            f"data.form: images cannot be had with {name} ({config.model_type}): {_REFUSED[config.model_type]}. Text "
            "rows can."
        )
    if not isinstance(load_processor(folder).chat_template, str):
        raise InputError(
            f"{name} has no chat template that says where in a conversation its images are: put one beside it, as "
            "chat_template.jinja."
        )


class PictureChat(Chat):
    """Renders conversations about images, for a tokenizer and the processor in its model's folder; raises as
    `load_processor`."""

    def __init__(self, tokenizer: Any, folder: Path) -> None:
        self._processor = load_processor(folder)
        super().__init__(tokenizer, self._processor.chat_template)
        self.processor_sha256 = processor_sha256(folder)

    def read(self, document: str) -> tuple[Rendered, NDArray[np.bool_], Picture] | Unfit:
        """A conversation with its images, as `PictureEncoder` is given it, which of its n tokens stand for them [n],
        and its record; or why it cannot be read."""
        row = json.loads(document)
        found = self._lay_out(row["messages"])
        if isinstance(found, Unfit):
            return found
        text, spans, ends = found
        picture = Picture(text, tuple(base64.b64decode(image["bytes"]) for image in row["images"]))
        try:
            opened(picture.images)
        except Exception as error:  # PIL's own, of many kinds
            return Unfit(f"has an image that cannot be read ({reason_of(error)})")
        options = {"return_offsets_mapping": True, "return_text_replacement_offsets": True}
        try:
            made = encoded(self._processor, picture, **options)
        except Exception as error:  # whatever a processor raises
            return Unfit(f"is refused by the processor ({reason_of(error)})")
        widened = [(*each["span"], each["replacement"]) for each in made["text_replacement_offsets"][0]]
        encoding = SimpleNamespace(ids=made["input_ids"][0].tolist(), offsets=made["offset_mapping"][0].tolist())
        text, spans = _widen(text, spans, widened)
        rendered, places = self._read(encoding, text, spans, ends), np.zeros(len(encoding.ids) + 1, np.bool_)
        for first, last in (each["new_span"] for each in made["text_replacement_offsets"][0]):
            places[:-1] |= [first <= begin < last for begin, _ in encoding.offsets]
        return rendered, places[: len(rendered.ids)], picture


def _widen(
    text: str, spans: Sequence[tuple[int, int]], widened: Sequence[tuple[int, int, str]]
) -> tuple[str, list[tuple[int, int]]]:
    """A text whose placeholders (start, end, what stands there instead) are replaced, and where its spans are then."""
    pieces, done = [], 0
    for start, end, instead in widened:
        pieces += [text[done:start], instead]
        done = end

    def moved(place: int) -> int:
        return place + sum(len(instead) - (end - start) for start, end, instead in widened if end <= place)

    return "".join([*pieces, text[done:]]), [(moved(first), moved(last)) for first, last in spans]


@dataclasses.dataclass(frozen=True)
class PictureEncoder:
    """Marked token ids of conversations about images, each with its record, for rows of `seq_len` tokens."""

    chat: PictureChat
    seq_len: int
    train_on_prompt: bool = False

    def __call__(self, documents: Sequence[str]) -> list[Pictured | str]:
        """For each conversation its ids with their marks and its record, or what is wrong with it."""
        return [self._one(document)[0] for document in documents]

    def bare(self, document: str) -> Ids:
        """The ids of a conversation alone; none of one that cannot be read."""
        found = self.chat.read(document)
        return np.zeros(0, np.uint32) if isinstance(found, Unfit) else found[0].ids

    def with_bytes(self, document: str) -> tuple[Pictured, NDArray[np.int64]]:
        """As `__call__` gives it of a conversation that can be read, and the UTF-8 bytes that each token stands for,
        where it is to be learned."""
        found, sizes = self._one(document)
        assert not isinstance(found, str), "what is laid out was encoded before"
        return found, sizes

    def _one(self, document: str) -> tuple[Pictured | str, NDArray[np.int64]]:
        nothing = np.zeros(0, np.int64)
        found = self.chat.read(document)
        if isinstance(found, Unfit):
            return str(found), nothing
        rendered, places, picture = found
        learned = (np.ones_like(places) if self.train_on_prompt else rendered.answers) & ~places
        if len(rendered.ids) > self.seq_len:
            return TOO_LONG, nothing
        if not learned[1:].any():
            return NO_ANSWER_LEFT if rendered.answers.any() else NO_ANSWER, nothing
        tokens = marked(rendered.ids, learned, first=False)
        return Pictured(tokens, picture.record()), np.where(learned, rendered.bytes, 0)


@dataclasses.dataclass(frozen=True)
class OneARow(RowLayout):
    """A conversation a row; the rest of it is filled up."""

    eos_id: int = 0

    def is_whole(self, length: int) -> bool:
        """True: none is longer than a row."""
        return True

    def gives(self, length: int) -> int:
        """A row, however short it is."""
        return self.seq_len

    def filled(self, document: Pictured) -> Ids:
        """The ids of a row, with their marks."""
        return np.concatenate([document.ids, filler(len(document), self.seq_len, self.eos_id)])

    def rows(self, texts: Iterable[str], encoder: DocumentEncoder, num_rows: int) -> TextRows:
        """At most `num_rows` conversations, in their order."""
        found: list[tuple[Ids, int, bytes]] = []
        for text, _ in zip(texts, range(num_rows), strict=False):
            document, sizes = encoder.with_bytes(text)
            assert isinstance(document, Pictured)
            found.append((self.filled(document), int(sizes[1:].sum()), document.record))
        tokens = np.stack([ids for ids, _, _ in found]) if found else np.zeros((0, self.seq_len), np.uint32)
        return TextRows(
            ids_of(tokens).astype(np.uint32),
            [size for _, size, _ in found],
            np.repeat(np.arange(len(found))[:, None], self.seq_len, axis=1),
            marks_of(tokens),
            [record for _, _, record in found],
        )


def with_files(document: str, folder: Path | None) -> str:
    """A row's JSON whose images are bytes, those of files in or below a folder read; None where there is no such place.

    Raises:
        ValueError: one cannot be read; the message says why in a few words.
    """
    row: dict[str, Any] = json.loads(document)
    row["images"] = [_with_bytes(image, folder) for image in row["images"]]
    return json.dumps(row, ensure_ascii=False)


def _with_bytes(image: Mapping[str, str], folder: Path | None) -> Mapping[str, str]:
    if "bytes" in image:
        return image
    if folder is None:
        raise ValueError(f"names the image file {image['path']}, and of the hub only images within the rows are read")
    try:
        return {"bytes": base64.b64encode((folder / image["path"]).read_bytes()).decode()}
    except OSError as error:
        raise ValueError(f"has an image that cannot be read ({reason_of(error)})") from error


@dataclasses.dataclass(frozen=True)
class PictureReader:
    """Makes what a model is given of images, of the records of a store's rows."""

    processor: Any
    where: Path
    """The store."""

    @classmethod
    def of(cls, store: Any, folder: Path) -> "PictureReader":
        """That of a store, by the processor in a model's folder.

        Raises:
            InputError: pixels would be made otherwise than when the store was prepared; and as `load_processor`.
            UsageError: as `load_processor`.
        """
        processor = load_processor(folder)
        if store.index["instructions"][PROCESSOR] != processor_sha256(folder):
            raise InputError(
                f"{folder} has another processor than {store.path} was prepared with, so images would look otherwise: "
                "put back its preprocessor_config.json and processor_config.json, or prepare the data again."
            )
        return cls(processor, store.path)

    def __call__(self, rows: NDArray[np.int64], records: Sequence[bytes]) -> tuple[Inputs, ...]:
        """The inputs of each of the rows [n, S].

        Raises:
            InputError: the processor makes other ids of one than it has.
        """
        return tuple(self._row(ids, Picture.read(record)) for ids, record in zip(rows, records, strict=True))

    def _row(self, ids: NDArray[np.int64], picture: Picture) -> Inputs:
        made = encoded(self.processor, picture)
        found = made["input_ids"][0].tolist()
        if found != ids[: len(found)].tolist():
            raise InputError(
                f"The processor makes other tokens of a row of {self.where} than when it was prepared: it is another "
                "version, or of another model. Prepare the data again."
            )
        left = len(ids) - len(found)
        return {
            name: torch.nn.functional.pad(value, (0, left)) if name.endswith("token_type_ids") else value
            for name, value in model_inputs(made).items()
        }
