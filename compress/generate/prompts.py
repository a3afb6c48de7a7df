"""Prompts from a SOURCE: beginnings of texts, or conversations up to where an answer is to be written."""

import dataclasses
import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from compress.base.errors import InputError, UsageError
from compress.base.progress import say
from compress.base.signals import StopRequest
from compress.data import DataConfig, framing_for
from compress.data.sources.hub import HubSource
from compress.data.sources.instructions import Asked, Form
from compress.data.sources.sources import Source, find_source
from compress.data.sources.stream import Position, Retry, form_of, read_items
from compress.data.store.chat import Chat, Unfit, joined
from compress.generate.config import GenerateConfig
from compress.generate.rewriting import agrees, with_hint
from compress.inference.readout import Checkpoint
from compress.inference.tree import Ids
from compress.model.framing import Framing, begun
from compress.model.tokenizer import tokenizer_spec


@dataclasses.dataclass(frozen=True)
class Prompt:
    """What a model is to go on from."""

    ids: Ids
    """[n]"""
    messages: list[dict[str, str]] | None
    """The conversation so far; None where the prompt is the beginning of a text."""
    reference: str | None = None
    """The answer that is to be written anew."""

    def answered(self, answer: Sequence[int], tokenizer: Any) -> dict[str, Any] | None:
        """A row of data: `messages`, or `text`; None where the answer has no text, or disagrees with the reference."""
        written = tokenizer.decode(answer, skip_special_tokens=True)
        if not written.strip() or (self.reference is not None and not agrees(written, self.reference)):
            return None
        if self.messages is not None:
            return self._with(written)
        return {"text": tokenizer.decode([*self.ids.tolist(), *answer], skip_special_tokens=True)}

    def unchanged(self) -> dict[str, Any] | None:
        """The row with the answer that it had; None where it is not known."""
        return None if self.reference is None else self._with(self.reference)

    def _with(self, answer: str) -> dict[str, Any]:
        return {"messages": [*(self.messages or ()), {"role": "assistant", "content": answer}]}


class Prompts(NamedTuple):
    """A SOURCE of prompts, connected."""

    name: str
    source: Source
    form: Form
    retry: Retry

    @classmethod
    def of(cls, name: str, config: GenerateConfig) -> "Prompts":
        """Find a SOURCE and what its rows are.

        Raises:
            UsageError: a hub dataset, and no `limit`; or texts that are to be rewritten.
            InputError: there is no such source, or nothing in it that can be read.
        """
        source = find_source(DataConfig(dataset=name, text_column=config.text_column, tokens=1))
        if isinstance(source, HubSource) and config.limit is None:
            raise UsageError(f"generate.limit (--limit N) is required for the hub dataset {name}: it is read in part.")
        retry = Retry(StopRequest())
        retry.call(name, source.connect)
        source.unread.tell(name)
        form = form_of(source, Asked(config.form, config.text_column, answered=config.rewrite), retry)
        if config.rewrite and form.is_text:
            raise UsageError(f"generate.rewrite is of conversations, and {name} holds texts. Leave the option out.")
        return cls(name, source, form, retry)

    def framing(self, config: GenerateConfig, reader: Path) -> Framing:
        """What texts begin with: as the model in `reader` reads them best. A chat template writes its own start."""
        return framing_for(self.name, config.text_column, reader) if self.are_texts(config) else Framing()

    def are_texts(self, config: GenerateConfig) -> bool:
        """Whether the model is to continue texts."""
        return self.form.is_text and not config.chat

    def read(self, checkpoint: Checkpoint, config: GenerateConfig) -> list[Prompt]:
        """The prompts, in the source's order; rows that make none are counted and said.

        Raises:
            UsageError: a chat of texts without a chat template, or no room for a prompt.
            InputError: nothing makes a prompt.
        """
        room = None if checkpoint.context is None else checkpoint.context - config.new_tokens
        if room is not None and room < 1:
            raise UsageError(
                f"generate.new_tokens = {config.new_tokens} leaves no room for a prompt: {checkpoint.name} reads "
                f"{checkpoint.context} tokens."
            )
        chat = None if self.are_texts(config) else Chat(checkpoint.tokenizer)
        if chat is not None and config.chat and not chat.has_template:
            raise UsageError(
                f"generate.chat: the tokenizer of {checkpoint.name} has no chat template. Leave the option out to "
                "continue texts, or put the model's own template beside its tokenizer, as chat_template.jinja."
            )
        found: list[Prompt] = []
        skipped: list[str] = []
        with closing(read_items(self.source, self.form, Position(0, 0), self.retry)) as items:
            for item in items:
                if item.row.text is None:
                    skipped += [item.row.fault] if item.row.fault else []
                    continue
                made = self._prompt(item.row.text, chat, checkpoint, config)
                if isinstance(made, Prompt) and room is not None and len(made.ids) > room:
                    made = f"leaves no room for {config.new_tokens} tokens in a context of {checkpoint.context}"
                if isinstance(made, Prompt):
                    found.append(made)
                else:
                    skipped.append(made)
                if config.limit is not None and len(found) >= config.limit:
                    break
        if skipped:
            say(f"{self.name}: {len(skipped)} rows make no prompt and were skipped, the first of which {skipped[0]}.")
        if not found:
            raise InputError(f"{self.name} has no row that makes a prompt.")
        for prompt in found:
            checkpoint.check_ids(prompt.ids)
        return found

    def _prompt(self, row: str, chat: Chat | None, checkpoint: Checkpoint, config: GenerateConfig) -> Prompt | str:
        """The prompt of a row, or why it makes none."""
        if chat is None:
            kept = checkpoint.prompt_ids(row)[: len(checkpoint.prefix) + config.prompt_tokens]
            return Prompt(np.asarray(kept, dtype=np.int64), None) if kept else "has no token"
        messages = [{"role": "user", "content": row}] if self.form.is_text else json.loads(row)
        reference = None
        if config.rewrite:
            *messages, last = list(map(joined, messages))
            if last["role"] != "assistant" or not messages or messages[-1]["role"] != "user":
                return "does not end with an answer to what a user says"
            reference = last["content"]
        ids = chat.prompt(messages if reference is None else with_hint(messages, reference))
        if isinstance(ids, Unfit):
            return str(ids)
        start = () if chat.has_template else tokenizer_spec(checkpoint.tokenizer).prefix
        begun_ids = np.asarray(begun(ids.tolist(), start), dtype=np.int64)
        return Prompt(begun_ids, list(map(joined, messages)), reference)
