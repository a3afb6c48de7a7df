"""What is known of a model and its tokenizer before a text is counted, and what a choice of ids makes of them."""

import copy
import dataclasses
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from compress.base.disk import read_json
from compress.base.errors import InputError
from compress.model.files import check_weight_files
from compress.model.load import config_from, load_config, load_tokenizer
from compress.model.parts import count_parameters, empty_model, why_no_model
from compress.prune.rules.student_config import text_section
from compress.prune.trimming.definition import Definition, NewIds
from compress.prune.trimming.named_ids import named_ids, with_new_ids
from compress.weights.headers import StoredTensor, select_tensors
from compress.weights.rows import with_rows
from compress.weights.shards import StudentTensor

_GENERATION = "generation_config.json"
_SIZE = "vocab_size"
_NAMED_BY_CLASS = ("bos_token_id", "eos_token_id", "pad_token_id")


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """A model's vocabulary: its tokenizer, and the rows that stand for it."""

    name: str
    """What the user calls the model."""
    folder: Path
    tokenizer: Any
    definition: Definition
    config: Any
    """Its `PretrainedConfig`."""
    content: dict[str, Any]
    """Of config.json, with the ids that its class names where the file does not."""
    generation: dict[str, Any]
    """Of generation_config.json."""

    @classmethod
    def of(cls, name: str, folder: Path) -> "Vocabulary":
        """That of the model in `folder`.

        Raises:
            InputError: its tokenizer cannot be rebuilt, its ids and rows do not belong together, or it has further
                tables by id.
        """
        config, tokenizer = load_config(folder), load_tokenizer(folder)
        content, written = read_json(folder / "config.json"), folder / _GENERATION
        found = cls(
            name=name,
            folder=folder,
            tokenizer=tokenizer,
            definition=Definition.of(tokenizer, name),
            config=config,
            content=content,
            generation=read_json(written) if written.is_file() else {},
        )
        found._write_out_ids()
        found._check()
        return found

    @property
    def num_rows(self) -> int:
        """Rows of the embedding, of which the last may be of no token."""
        return int(self.config.get_text_config().vocab_size)

    @cached_property
    def always(self) -> frozenset[int]:
        """Ids that stay whatever the text is: see `Definition.always`, and those that the configs name."""
        needs = self.definition.pieces.needs
        named = {needed for _, token in self._named() for needed in needs(token)}
        return frozenset(named | self.definition.always())

    @cached_property
    def num_parameters(self) -> int:
        """Of the model, tied ones counted once."""
        return count_parameters(self._empty(self.config))

    def to_dict(self) -> dict[str, Any]:
        """What is known before a text is counted, as plain JSON data."""
        return {
            "model": self.name,
            "vocab_before": self.num_rows,
            "tokens": len(self.definition.tokens),
            "always_kept": len(self.always),
            "params_before": self.num_parameters,
        }

    def describe(self) -> str:
        """The same for people, a line."""
        return (
            f"{self.name}: {len(self.definition.tokens):,} tokens in {self.num_rows:,} rows, {len(self.always):,} of "
            f"which always stay; {self.num_parameters:,} parameters"
        )

    def _named(self) -> list[tuple[str, int]]:
        return [*named_ids(self.content), *named_ids(self.generation)]

    def _section(self, content: dict[str, Any]) -> dict[str, Any]:
        return text_section(self.config, self.config.get_text_config(), content)

    def _write_out_ids(self) -> None:
        """Name in the file what its class names by default, where that is a token's: the default keeps its number."""
        section, tokens = self._section(self.content), self.definition.tokens
        for field in _NAMED_BY_CLASS:
            value = getattr(self.config.get_text_config(), field, None)
            if isinstance(value, int) and field not in section:
                section[field] = value if value in tokens else None

    def _check(self) -> None:
        """Refuse what `of` says."""
        tokens, text = self.definition.tokens, self.config.get_text_config()
        if max(tokens) >= self.num_rows:
            raise InputError(
                f"The tokenizer of {self.name} has the id {max(tokens)}, and its embedding {self.num_rows} rows: they "
                "do not belong together."
            )
        for field, token in self._named():
            if token not in tokens:
                raise InputError(
                    f"{self.name} names the id {token} as {field}, of which its tokenizer has no token. Correct its "
                    f"config.json or {_GENERATION}."
                )
        others = [name for name, value in text.to_dict().items() if _SIZE in name and name != _SIZE and value]
        if others:
            raise InputError(
                f"{self.name} ({text.model_type}) has further tables by token id ({others[0]}), which this tool does "
                "not trim."
            )

    def _empty(self, config: Any) -> Any:
        try:
            return empty_model(copy.deepcopy(config))
        except Exception as error:
            raise InputError(f"{self.folder / 'config.json'} makes no causal LM: {why_no_model(error)}") from error


@dataclasses.dataclass(frozen=True)
class Trimmed:
    """A vocabulary of which the ids `kept` stay, increasing."""

    vocabulary: Vocabulary
    kept: tuple[int, ...]

    @cached_property
    def new(self) -> NewIds:
        """New ids by old ones."""
        return {old: number for number, old in enumerate(self.kept)}

    @property
    def config_json(self) -> dict[str, Any]:
        """Content of config.json."""
        content: dict[str, Any] = with_new_ids(copy.deepcopy(self.vocabulary.content), self.new)
        text = self.vocabulary.config.get_text_config()
        section = text_section(self.vocabulary.config, text, content)
        size = text.attribute_map.get(_SIZE, _SIZE)
        section |= dict.fromkeys({size, *({_SIZE} & section.keys())}, len(self.kept))
        return content

    @property
    def generation_json(self) -> dict[str, Any]:
        """Content of generation_config.json; empty where the model has none."""
        found: dict[str, Any] = with_new_ids(self.vocabulary.generation, self.new)
        return found

    @cached_property
    def model(self) -> Any:
        """The model without weights."""
        return self.vocabulary._empty(config_from(self.config_json, self.vocabulary.folder))

    def tensors(self) -> list[StudentTensor]:
        """The model's tensors: of those with a row (or a bias) for each id, the rows of the ids that stay.

        Raises:
            InputError: it has a tensor by id of another form.
        """
        tails = self._by_id()
        named = select_tensors(check_weight_files(self.vocabulary.folder), (), (), 0)
        return [self._tensor(name, stored, tails) for name, stored in named]

    def _tensor(self, name: str, stored: StoredTensor, tails: frozenset[str]) -> StudentTensor:
        rows, tensor = stored.shape[0] if stored.shape else 0, StudentTensor.same(name, stored)
        by_id = rows == self.vocabulary.num_rows and _tail(name) in tails
        return with_rows(tensor, self.kept) if by_id else tensor

    def _by_id(self) -> frozenset[str]:
        """Ends of the names of tensors with a row for each id: those that are smaller in the smaller model."""
        before, after = (
            {name: tuple(value.shape) for name, value in model.state_dict().items()}
            for model in (self.vocabulary._empty(self.vocabulary.config), self.model)
        )
        found = [name for name, shape in before.items() if shape != after.get(name)]
        for name in found:
            if before[name][0] != self.vocabulary.num_rows or after.get(name) != (len(self.kept), *before[name][1:]):
                raise InputError(
                    f"{self.vocabulary.name} has the tensor {name} of shape {before[name]}, whose size depends on the "
                    "vocabulary in a way that this tool does not know; it cannot be trimmed."
                )
        return frozenset(map(_tail, found))


def _tail(name: str) -> str:
    """The last two parts of a tensor's name, which is all that checkpoints saved with and without a head share."""
    parts: Sequence[str] = name.split(".")
    return ".".join(parts[-2:])
