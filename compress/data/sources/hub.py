"""The data files of a hub dataset, read over the network as a stream: nothing is downloaded first, nothing is kept."""

import io
import os
from collections.abc import Mapping
from typing import Any, BinaryIO, cast

from compress.base.errors import InputError, UsageError, reason_of
from compress.data.sources.readers import FORMATS, DataFile, Layout, layout_of
from compress.data.sources.unread import Unread

_OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
BLOCK_BYTES = 8 * 2**20
"""Bytes asked for in one request."""


class HubSource:
    """Data files of one configuration and split of a hub dataset, at one commit, read by ranges and never stored.

    `datasets` decides which files those are, as `load_dataset` would.
    """

    def __init__(self, repository: str, config: str | None, split: str, commit: str | None = None) -> None:
        self.repository, self.config, self.split = repository, config, split
        self._commit = commit
        self._urls: list[str] = []
        self.unread = Unread({})
        self._opening: Exception | None = None

    def connect(self) -> None:
        """Ask the hub for the list of files.

        Raises:
            UsageError: no such configuration or split; the message lists those there are. Or the environment forbids
                the network.
            InputError: the dataset is unknown or gated, or has no files of a known format.
            Exception: the hub could not be reached.
        """
        from datasets import load_dataset_builder
        from datasets.data_files import EmptyDatasetError
        from datasets.exceptions import DataFilesNotFoundError, DatasetNotFoundError

        for name in _OFFLINE:
            if os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE"):
                raise UsageError(
                    f"{self.repository} lies on the Hugging Face hub, and {name}={os.environ[name]} keeps this process "
                    "off the network: unset it, or name local files."
                )
        try:
            builder = load_dataset_builder(f"hf://datasets/{self.repository}", self.config, revision=self._commit)
        except DatasetNotFoundError as error:
            raise InputError(
                f"{self.repository} is no dataset on the Hugging Face hub that you may read: check the name; if it is "
                "gated, accept its terms on its page and `hf auth login`."
            ) from error
        except (DataFilesNotFoundError, EmptyDatasetError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "script" not in str(error):
                raise
            raise InputError(f"{self.repository} cannot be read: {reason_of(error)}") from error
        except ValueError as error:
            raise UsageError(f"{self.repository}: {reason_of(error)}") from error
        data_files: Mapping[str, Any] | None = builder.config.data_files
        if data_files is None:
            raise ConnectionError(f"{self.repository} could not be looked up on the hub")
        if self.split not in data_files:
            raise UsageError(
                f"{self.repository} has no split {self.split!r}; it has {', '.join(map(str, data_files))}."
            )
        urls = [str(url) for url in data_files[self.split]]
        self._urls = [url for url in urls if layout_of(url)]
        self.unread = Unread({self._path(url): "" for url in urls if not layout_of(url)})
        if not self._urls:
            raise InputError(
                f"{self.repository} has no data files of a known format: {FORMATS}.{self.unread.sentence(' ')}"
            )
        self._commit = str(builder.hash)

    @property
    def files(self) -> list[DataFile]:
        return [DataFile(self._path(url), cast(Layout, layout_of(url)), 0) for url in self._urls]

    def open(self, index: int) -> BinaryIO:
        from huggingface_hub import HfFileSystem

        try:
            inner = HfFileSystem().open(self._urls[index], "rb", block_size=BLOCK_BYTES)
        except Exception as error:
            self._opening = error
            raise
        return cast(BinaryIO, io.BufferedReader(_HubFile(inner)))

    def full_name(self, index: int) -> str:
        return f"{self.repository}/{self._path(self._urls[index])}"

    def failure(self, file: BinaryIO | None) -> Exception | None:
        if file is None:
            return self._opening
        return cast(_HubFile, cast(io.BufferedReader, file).raw).failure

    def listing(self) -> dict[str, Any]:
        return {"kind": "hub", "repository": self.repository, "config": self.config, "split": self.split}

    def fingerprint(self, num_read: int) -> dict[str, Any]:
        read = [self._path(url) for url in self._urls[:num_read]]
        return {**self.listing(), "commit": self._commit, "num_files": len(self._urls), "files_read": read}

    def matches(self, recorded: Mapping[str, Any]) -> bool:
        return all(recorded.get(key) == value for key, value in self.listing().items())

    @property
    def commit(self) -> str | None:
        """The commit that is read; known once connected."""
        return self._commit

    @staticmethod
    def _path(url: str) -> str:
        return url.partition("@")[2].partition("/")[2] or url


class _HubFile(io.RawIOBase):
    """A remote file that remembers the error which ended a read, however the decoders above wrap it."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.failure: Exception | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._inner.seek(offset, whence))

    def tell(self) -> int:
        return int(self._inner.tell())

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        try:
            data = self._inner.read(len(view))
        except Exception as error:
            self.failure = error
            raise
        view[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._inner.close()
        super().close()
