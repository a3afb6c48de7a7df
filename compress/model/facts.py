"""What is known of a model before its weights are read: enough to refuse, early, what cannot be done with it."""

import dataclasses
from functools import cached_property
from pathlib import Path
from typing import Any

from compress.base.errors import Faults, InputError, UsageError
from compress.model.cuts import Cut, cuts_of
from compress.model.files import SMALL_FILES, check_weight_files, download, local_folder
from compress.model.kinds import kind_of
from compress.model.load import load_config, load_tokenizer


@dataclasses.dataclass(frozen=True)
class ModelFacts:
    """A model that is there, or that a step will make."""

    name: str
    """What the user calls it."""
    config: Any
    """Its `PretrainedConfig`."""
    side: Path
    """Folder with its tokenizer and generation config: its own, or that of the model it will be cut from."""
    cuts: tuple[Cut, ...] = ()
    """Of the model that it was cut from and, where that was a cut, of the first of the chain; none of no known cut."""

    @cached_property
    def tokenizer(self) -> Any:
        """Its tokenizer; raises as `load_tokenizer`."""
        return load_tokenizer(self.side)


def check_same_kind(student: ModelFacts, teacher: ModelFacts) -> None:
    """Refuse two models that do not predict the same.

    Raises:
        UsageError: one is a causal language model and the other a masked one.
    """
    kinds = {model.name: kind_of(model.config) for model in (student, teacher)}
    if len(set(kinds.values())) > 1:
        said = " and ".join(f"{name} is a {kind} language model" for name, kind in kinds.items())
        raise UsageError(f"{said}: they do not predict the same tokens. Take two of one kind.")


def require_mask_token(model: ModelFacts) -> None:
    """Refuse a tokenizer that can hide no token.

    Raises:
        InputError: it has no mask token.
    """
    if model.tokenizer.mask_token_id is None:
        raise InputError(
            f"The tokenizer of {model.name}, a masked language model, has no mask token: name it as `mask_token` in "
            "its tokenizer_config.json."
        )


def look_at_model(name: str, faults: Faults, revision: str | None = None) -> ModelFacts | None:
    """The facts of a model folder, whose weight files are looked at, or of a hub model, of which only the small files
    are fetched; None, and a fault, where there is no such model, its config.json cannot be used, or it is no language
    model."""
    found = look_at_config(name, faults, revision)
    if found is not None and local_folder(name) is not None:
        faults.of(lambda: check_weight_files(found.side))
    return found


def look_at_config(name: str, faults: Faults, revision: str | None = None) -> ModelFacts | None:
    """`look_at_model` without a look at weight files."""
    folder = faults.of(lambda: local_folder(name) or _small_files(name, revision))
    config = None if folder is None else faults.of(lambda: load_config(folder))
    kind = None if config is None else faults.of(lambda: kind_of(config))
    return None if folder is None or kind is None else ModelFacts(name, config, folder, cuts_of(folder))


def _small_files(name: str, revision: str | None) -> Path:
    folder = download(name, revision, SMALL_FILES)
    if not (folder / "config.json").is_file():
        raise InputError(f"{name} is not a model: it has no config.json.")
    return folder
