"""The making of a token store in its locked `OUT.partial/`: from one source, or from each of a blend's in turn."""

import dataclasses
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from compress.base.disk import write_json
from compress.base.errors import CompressError, InputError, InterruptedRun, UsageError
from compress.base.signals import StopRequest
from compress.data.config import DataConfig
from compress.data.sources.stream import Unavailable
from compress.data.store import partial
from compress.data.store.blend import blended_source, join, part_folder
from compress.data.store.index import INDEX
from compress.data.store.preparation import OfBlend, Preparation
from compress.data.store.record import identity
from compress.data.store.store import TokenStore
from compress.model.tokenizer import TokenizerSpec


@dataclasses.dataclass(frozen=True)
class Maker:
    """What token stores are made with."""

    tokenizer: Any
    spec: TokenizerSpec
    reader: Path
    """The model that is asked how rows begin."""
    stop: StopRequest
    visible: bool
    """Whether to show progress bars."""

    def store(self, config: DataConfig, out: Path, folder: Path, of_blend: OfBlend | None = None) -> None:
        """Make the store `out` of one source, or go on making it.

        Raises:
            As `prepare`; a failure leaves nothing of what this call began.
        """
        made = Preparation(config, self.tokenizer, self.spec, self.reader, out, folder, self.stop, of_blend)
        try:
            made.run(visible=self.visible)
        except (InterruptedRun, Unavailable):
            partial.remove_if_empty(folder)
            raise
        except CompressError:
            if made.began_here:
                shutil.rmtree(folder)
            raise

    def blend(self, config: DataConfig, out: Path, folder: Path) -> None:
        """Make the stores of a blend's sources in `folder`, and `out` of them. All texts are framed as the first is.

        Raises:
            As `prepare`; a failure leaves the stores of the sources that are finished.
        """
        if not (folder / INDEX).is_file():
            self._sources(config, folder)
            seconds = sum(TokenStore.open(each).index["manifest"]["seconds"] for each in self._folders(config, folder))
            write_json(folder / INDEX, join(folder, config, self.spec.sha256, seconds))
        partial.publish(folder, out)

    def _sources(self, config: DataConfig, folder: Path) -> None:
        begun = {"identity": identity(config, self.spec.sha256), "source": blended_source([])}
        partial.save_state(folder, begun)
        framing = None
        for name, part, place in zip(config.names, config.parts(), self._folders(config, folder), strict=True):
            if not (place / INDEX).is_file():
                with _of_blend(name, folder), partial.owned_folder(place) as own:
                    self.store(part, place, own, OfBlend(framing))
            made = TokenStore.open(place)
            framing = framing or (None if made.marked else made.framing)

    def _folders(self, config: DataConfig, folder: Path) -> list[Path]:
        return [part_folder(folder, number) for number in range(len(config.names))]


@contextmanager
def _of_blend(name: str, folder: Path) -> Iterator[None]:
    """Name the source in what goes wrong with it, and leave no folder of a blend that has nothing of it."""
    try:
        yield
    except CompressError as error:
        if not any(path.is_dir() for path in folder.iterdir()):
            partial.forget_state(folder)
        if isinstance(error, Unavailable) or not isinstance(error, InputError | UsageError):
            raise
        own = " Of a blend, data.tokens is here the source's part: its `tokens`, or what its `weight` gives it."
        told = f"Source {name} of the blend: {error}"
        raise type(error)(told + (own if "data.tokens" in told else "")) from error
