"""Where the inputs of steps are: each finder is asked when its step's turn comes, and may say that nothing is there."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from compress.base.currency import Missing
from compress.base.errors import CompressError
from compress.data import INDEX, TokenStore
from compress.run.layout import Layout

Folder = Callable[[], Path]
"""Finds a folder; raises Missing where it is not here."""


def at(folder: Path) -> Folder:
    """Finds a model folder of the run itself."""

    def find() -> Path:
        if not (folder / "config.json").is_file():
            raise Missing(f"{folder} is not there")
        return folder

    return find


def if_there(find: Callable[[], Any]) -> Any:
    """What `find` returns; what it cannot read now can also not be compared."""
    try:
        return find()
    except CompressError as error:
        raise Missing(str(error)) from error


def store_of(layout: Layout) -> TokenStore:
    """The run's token store; raises as `store_in`."""
    return store_in(layout.data)


def store_in(folder: Path) -> TokenStore:
    """The token store in a folder.

    Raises:
        Missing: there is none.
        InputError: it is damaged.
    """
    if not (folder / INDEX).is_file():
        raise Missing(f"{folder} holds no token store")
    return TokenStore.open(folder)
