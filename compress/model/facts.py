"""What is known of a model before its weights are read: enough to refuse, early, what cannot be done with it."""

import dataclasses
from functools import cached_property
from pathlib import Path
from typing import Any

from compress.base.errors import InputError
from compress.model.files import SMALL_FILES, check_weight_files, download, local_folder
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

    @cached_property
    def tokenizer(self) -> Any:
        """Its tokenizer; raises as `load_tokenizer`."""
        return load_tokenizer(self.side)


def look_at_model(name: str, revision: str | None = None) -> ModelFacts:
    """The facts of a model folder, whose weight files are checked to be whole, or of a hub model, of which only the
    small files are fetched.

    Raises:
        InputError: there is no such model, its weight files are damaged, or its config.json cannot be used.
    """
    folder = local_folder(name)
    if folder is not None:
        check_weight_files(folder)
    else:
        folder = download(name, revision, SMALL_FILES)
        if not (folder / "config.json").is_file():
            raise InputError(f"{name} is not a model: it has no config.json.")
    return ModelFacts(name, load_config(folder), folder)
