"""An exported model put on the Hugging Face hub."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from compress.base.errors import InputError, UsageError, reason_of
from compress.ship.exporting.record import RECORD

_MADE_BY_THE_HUB = {".gitattributes", "README.md"}


def check_push(name: str) -> None:
    """Refuse a repository that cannot be written, or holds something that is no export of ours.

    Raises:
        UsageError: `name` is no ORG/NAME, or that repository holds other files.
        InputError: nobody is logged in, or the hub does not answer.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    if name.count("/") != 1 or not all(name.split("/")):
        raise UsageError(f"--push {name}: write the repository as ORG/NAME.")
    with _hub_errors(name):
        api = HfApi()
        api.whoami()
        try:
            there = set(api.list_repo_files(name))
        except RepositoryNotFoundError:
            return
    if there - _MADE_BY_THE_HUB and RECORD not in there:
        raise UsageError(
            f"--push {name}: that repository holds files that `compress export` did not make. Name another one."
        )


def push(folder: Path, name: str) -> str:
    """Upload a finished export to the model repository `name`, which is made, private, where there is none; its
    address.

    Raises:
        InputError: the hub refuses it; `folder` stays as it is.
    """
    from huggingface_hub import HfApi

    with _hub_errors(name, f" {folder} is complete: try again with `hf upload {name} {folder}`."):
        api = HfApi()
        address = str(api.create_repo(name, private=True, exist_ok=True))
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="compress export")
        return address


@contextmanager
def _hub_errors(name: str, more: str = "") -> Iterator[None]:
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    try:
        yield
    except LocalTokenNotFoundError as error:
        raise InputError(f"--push {name} needs a login: `hf auth login`, with a token that may write.{more}") from error
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
        raise InputError(
            f"--push {name}: the Hugging Face hub refused it ({reason_of(error)}). Look whether the token "
            f"(`hf auth whoami`) may write there, and at the network.{more}"
        ) from error
