"""How rows of data become rows of tokens: as texts, or as conversations."""

import dataclasses
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import Any

from compress.base.errors import UsageError
from compress.data.config import DataConfig
from compress.data.sources.instructions import Form
from compress.data.sources.sources import LocalSource, Source, asked_of
from compress.data.sources.stream import Item, Position, Retry, form_of, read_items
from compress.data.store.chat import Chat
from compress.data.store.conversations import ConversationEncoder, WholeRows
from compress.data.store.encode import DocumentEncoder, Encoder
from compress.data.store.framing import asked_framing, decide_framing
from compress.data.store.layout import RowLayout
from compress.data.store.pictures import PROCESSOR, OneARow, PictureChat, PictureEncoder, check_reader, with_files
from compress.model.files import SMALL_FILES, download, local_folder
from compress.model.framing import Framing
from compress.model.tokenizer import TokenizerSpec

_OF_CONVERSATIONS = ("train_on_prompt", "too_long", "apart")


@dataclasses.dataclass(frozen=True)
class Way:
    """How the rows of one source are read, for one tokenizer."""

    config: DataConfig
    form: Form
    spec: TokenizerSpec
    chat: Chat | PictureChat | None
    """What lays out conversations; None where rows are texts."""

    def encoder(self, framing: Framing) -> DocumentEncoder:
        """What makes token ids of documents that are framed so."""
        if self.chat is None:
            return Encoder(self.spec, framing.documents)
        if isinstance(self.chat, PictureChat):
            return PictureEncoder(self.chat, self.config.seq_len, self.config.train_on_prompt)
        how = {name: getattr(self.config, name) for name in _OF_CONVERSATIONS}
        return ConversationEncoder(self.chat, self.config.seq_len, framing.documents, **how)

    def layout(self, framing: Framing, share: int | None = 1) -> RowLayout:
        """How documents that are framed so become rows."""
        if self.chat is None:
            return RowLayout(self.config.seq_len, framing.rows, share)
        if isinstance(self.chat, PictureChat):
            return OneARow(self.config.seq_len, eos_id=self.spec.eos_id)
        return WholeRows(self.config.seq_len, eos_id=self.spec.eos_id)

    def framing(self, source: Source, reader: Path, retry: Retry) -> tuple[Framing, dict[str, Any] | None]:
        """How documents and rows are framed, and what that was decided by; the first documents are read for it.

        A chat template frames its conversations itself. Alpaca's layout begins with what `reader` reads rows better
        with. All rows begin with a conversation, and so need no frame of their own.
        """
        if isinstance(self.chat, PictureChat):  # what its processor writes
            return Framing(), None
        asked, decided = asked_framing(self.config.bos, self.spec), None
        if self.config.bos == "auto" and self.chat is not None and self.chat.has_template:
            asked = Framing()
        elif self.config.bos == "auto" and self.spec.prefix:
            with closing(self.items(source, Position(0, 0), retry)) as items:
                asked, decided = decide_framing(items, self.spec, reader, self.encoder(Framing()))
        return (asked if self.chat is None else Framing(asked.rows or asked.documents)), decided

    def items(self, source: Source, start: Position, retry: Retry) -> Generator[Item, None, None]:
        """The rows of the source from `start` on; see `read_items`. Image files beside a local file are read."""
        items = read_items(source, self.form, start, retry)
        return _with_files(items, source) if self.form.has_images else items

    def describe(self) -> str | None:
        """What rows were found to be, in a sentence; None where they are texts."""
        if self.chat is None:
            return None
        laid_out = (
            "the tokenizer's chat template" if self.chat.has_template else "Alpaca's, as there is no chat template"
        )
        learned = "all of a conversation" if self.config.train_on_prompt else "answers alone"
        return (
            f"{self.config.dataset} holds instructions of the form {self.form.name} ({', '.join(self.form.columns)}). "
            f"Layout: {laid_out}. Learned from: {learned}."
        )

    def record(self) -> dict[str, Any] | None:
        """What a store's index says of it; None where rows are texts."""
        if self.chat is None:
            return None
        template = "tokenizer" if self.chat.has_template else "alpaca"
        return {
            "form": self.form.name,
            "template": template,
            "template_sha256": self.chat.sha256,
            **{name: getattr(self.config, name) for name in _OF_CONVERSATIONS},
            **self._of_images(),
        }

    def _of_images(self) -> dict[str, Any]:
        """What is otherwise, and what there is besides, where rows have images."""
        if not isinstance(self.chat, PictureChat):
            return {}
        return {"too_long": "leave_out", "apart": False, PROCESSOR: self.chat.processor_sha256}


def _with_files(items: Generator[Item, None, None], source: Source) -> Generator[Item, None, None]:
    with closing(items):
        for item in items:
            if item.row.text is None:
                yield item
                continue
            folder = Path(source.full_name(item.file)).parent if isinstance(source, LocalSource) else None
            try:
                yield item._replace(row=item.row._replace(text=with_files(item.row.text, folder)))
            except ValueError as error:
                yield item._replace(row=item.row._replace(text=None, fault=str(error)))


def find_way(
    config: DataConfig,
    source: Source,
    tokenizer: Any,
    spec: TokenizerSpec,
    retry: Retry,
    reader: Path | None = None,
) -> Way:
    """How a connected source is read; rows with images by the processor of the model `reader`, a folder or a hub id.

    Raises:
        Unavailable: the network failed too often in a row.
    """
    form = form_of(source, asked_of(config), retry)
    if form.has_images:
        assert reader is not None, "only a token store has such rows"
        folder = local_folder(str(reader)) or download(str(reader), None, SMALL_FILES)
        check_reader(folder, str(reader))
        return Way(config, form, spec, PictureChat(tokenizer, folder))
    return Way(config, form, spec, None if form.is_text else Chat(tokenizer))


def check_options(config: DataConfig) -> None:
    """Refuse options of conversations, where all rows are texts.

    Raises:
        UsageError: one is not its default.
    """
    for name in _OF_CONVERSATIONS:
        if getattr(config, name) != DataConfig.__dataclass_fields__[name].default:
            what, form = ("hold", "the form of a source") if config.sources else ("holds", "data.form")
            raise UsageError(
                f"data.{name} is of instructions, and {', '.join(config.datasets)} {what} texts. Leave it out, or say "
                f"with {form} what else the rows are."
            )
