"""Cut anywhere and continued, the files are those of a preparation that was never cut.

Run as a script (FOLDER TOKENIZER KIND), this file prepares FOLDER/source in children that kill themselves with SIGKILL
at a random fsync, rename or document, again and again until one comes to the end.
"""

import errno
import fcntl
import importlib
import io
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from data_world import FORMATS, content, data_config, documents, write_source
from fault_injection import Signal

from compress.base.disk import sha256_tree
from compress.base.errors import CompressError, InputError, InterruptedRun, UsageError
from compress.data import DataConfig, prepare
from compress.data.config import SourceConfig
from compress.data.sources import stream
from compress.data.sources.sources import LocalSource
from compress.data.store import partial, preparation, shards
from compress.data.store.preparation import Preparation


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    take_small_steps(monkeypatch.setattr)


def take_small_steps(set_attribute: Callable[[Any, str, Any], None]) -> None:
    """Tiny shards and batches, and a saved state after every batch."""
    set_attribute(shards, "SHARD_TOKENS", 700)
    set_attribute(stream, "BATCH_CHARS", 150)
    set_attribute(preparation, "SAVE_EVERY_S", 0.0)


def write_sources(folder: Path) -> None:
    texts = documents(160, 5)
    texts[70] = "long " * 900  # spans several shards
    for i, name in enumerate(("a.parquet", "b.parquet", "c.parquet")):
        write_source(folder / "source" / name, texts[i * 50 : (i + 1) * 50])


def config_of(folder: Path, kind: str) -> DataConfig:
    """All the files as one source, or as two sources of a blend."""
    if kind == "one source":
        return data_config(folder / "source")
    sources = tuple(SourceConfig(dataset=str(folder / "source" / name)) for name in ("a.parquet", "[bc].parquet"))
    return DataConfig(sources=sources, seq_len=32, heldout_sequences=5)


@pytest.mark.faults(2)
@pytest.mark.parametrize("kind", ["one source", "blend"])
def test_killed_at_random_moments(tmp_path: Path, tokenizer_folder: Path, small_steps: None, kind: str) -> None:
    write_sources(tmp_path)
    prepare(config_of(tmp_path, kind), tokenizer_folder, tmp_path / "uncut")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(tmp_path), str(tokenizer_folder), kind]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    kills = list(map(int, done.stdout.split()))
    assert len(kills) == 3
    assert sum(kills) >= 15, kills
    for run in range(3):
        assert content(tmp_path / f"cut-{run}") == content(tmp_path / "uncut")


def signalled(monkeypatch: pytest.MonkeyPatch, signals: dict[int, list[signal.Signals]]) -> list[str]:
    """Raise `signals` after so many documents; the list that each document is noted in as it is read."""
    read: list[str] = []
    take = Preparation._take_document

    def note(self: Preparation, text: str, ids: Any) -> None:
        take(self, text, ids)
        read.append(text)
        for number in signals.get(len(read), []):
            signal.raise_signal(number)

    monkeypatch.setattr(Preparation, "_take_document", note)
    return read


@pytest.mark.faults(8)
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_saves_and_the_next_run_continues(
    tmp_path: Path, tokenizer_folder: Path, small_steps: None, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    write_sources(tmp_path)
    prepare(data_config(tmp_path / "source"), tokenizer_folder, tmp_path / "uncut")
    number = getattr(signal, name)
    read = signalled(monkeypatch, {33: [number, number], 90: [number, number]})  # a second one changes nothing
    for _ in range(2):
        with pytest.raises(InterruptedRun, match=f"Stopped by {name}.*again to continue") as stopped:
            prepare(data_config(tmp_path / "source"), tokenizer_folder, tmp_path / "cut")
        assert stopped.value.exit_code == 75
        assert not (tmp_path / "cut").exists()
    prepare(data_config(tmp_path / "source"), tokenizer_folder, tmp_path / "cut")
    assert len(read) == 150  # none was read twice
    assert content(tmp_path / "cut") == content(tmp_path / "uncut")
    assert not (tmp_path / "cut.partial").exists()


def interrupt(tmp_path: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave a preparation of `cut` half done."""

    def stop(self: Preparation, text: str, ids: Any) -> None:
        signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Preparation, "_take_document", stop)
        with pytest.raises(InterruptedRun):
            prepare(data_config(tmp_path / "source"), tokenizer_folder, tmp_path / "cut")
    assert (tmp_path / "cut.partial" / "state.json").is_file()


def test_what_was_begun_with_other_options_or_data_is_kept(
    tmp_path: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither continued nor thrown away: moved away by the user, what is asked for is prepared from its beginning."""
    write_sources(tmp_path)
    interrupt(tmp_path, tokenizer_folder, monkeypatch)
    begun = sha256_tree(tmp_path / "cut.partial")
    with pytest.raises(UsageError, match=r"cut.partial is the beginning of another store: seed was 0 and is 1\."):
        prepare(data_config(tmp_path / "source", seed=1), tokenizer_folder, tmp_path / "cut")
    write_source(tmp_path / "source" / "a.parquet", documents(20, 9))
    with pytest.raises(UsageError, match="the source is another"):
        prepare(data_config(tmp_path / "source"), tokenizer_folder, tmp_path / "cut")
    assert sha256_tree(tmp_path / "cut.partial") == begun
    (tmp_path / "cut.partial").rename(tmp_path / "kept")
    for name in ("cut", "uncut"):
        prepare(data_config(tmp_path / "source"), tokenizer_folder, tmp_path / name)
    assert content(tmp_path / "cut") == content(tmp_path / "uncut")


def test_a_failing_run_keeps_what_an_earlier_one_saved(
    tmp_path: Path, tokenizer_folder: Path, small_steps: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is not mounted, an option that does not go with the source: mended, nothing is read twice."""
    write_sources(tmp_path)
    prepare(data_config(tmp_path / "source"), tokenizer_folder, tmp_path / "uncut")
    read = signalled(monkeypatch, {60: [signal.SIGTERM]})
    with pytest.raises(InterruptedRun):
        prepare(data_config(tmp_path / "source"), tokenizer_folder, tmp_path / "cut")
    (tmp_path / "source").rename(tmp_path / "away")
    with pytest.raises(InputError, match="does not exist"):
        prepare(data_config(tmp_path / "source"), tokenizer_folder, tmp_path / "cut")
    (tmp_path / "away").rename(tmp_path / "source")
    with pytest.raises(UsageError, match=r"data\.split applies to hub datasets"):
        prepare(data_config(tmp_path / "source", split="test"), tokenizer_folder, tmp_path / "cut")
    prepare(data_config(tmp_path / "source"), tokenizer_folder, tmp_path / "cut")
    assert len(read) == 150
    assert content(tmp_path / "cut") == content(tmp_path / "uncut")


def test_a_preparation_that_fails_leaves_nothing(tmp_path: Path, tokenizer_folder: Path) -> None:
    write_sources(tmp_path)
    with pytest.raises(InputError, match=r"only .* training tokens of the 10000000 asked for"):
        prepare(data_config(tmp_path / "source", tokens=10_000_000), tokenizer_folder, tmp_path / "cut")
    assert not (tmp_path / "cut.partial").exists()


def test_only_one_process_prepares_a_store(tmp_path: Path, tokenizer_folder: Path) -> None:
    write_sources(tmp_path)
    (tmp_path / "out.partial").mkdir()
    descriptor = os.open(tmp_path / "out.partial", os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match="Another process is writing to"):
            prepare(data_config(tmp_path / "source"), tokenizer_folder, tmp_path / "out")
    finally:
        os.close(descriptor)
    prepare(data_config(tmp_path / "source"), tokenizer_folder, tmp_path / "out")


def test_no_space_while_saving_keeps_what_was_saved(
    tmp_path: Path, tokenizer_folder: Path, small_steps: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_sources(tmp_path)
    prepare(data_config(tmp_path / "source"), tokenizer_folder, tmp_path / "uncut")
    calls = 0

    def full(path: Path, state: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(path, state)

    module = importlib.import_module("compress.data.store.partial")
    save = module.save_state
    with monkeypatch.context() as patch:
        patch.setattr(module, "save_state", full)
        with pytest.raises(CompressError, match="No space is left"):
            prepare(data_config(tmp_path / "source"), tokenizer_folder, tmp_path / "cut")
    prepare(data_config(tmp_path / "source"), tokenizer_folder, tmp_path / "cut")
    assert content(tmp_path / "cut") == content(tmp_path / "uncut")


class Failing(io.RawIOBase):
    """A file whose first `reads` reads succeed."""

    def __init__(self, path: Path, reads: int, error: Exception) -> None:
        self._file, self._left, self._error = path.open("rb", buffering=0), reads, error

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def readinto(self, buffer: Any) -> int | None:
        self._left -= 1
        if self._left < 0:
            raise self._error
        return self._file.readinto(buffer)

    def close(self) -> None:
        self._file.close()
        super().close()


@pytest.mark.faults(19)
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("error", [OSError(errno.ESTALE, "Stale file handle"), MemoryError("full")])
def test_a_file_that_cannot_be_read_now_is_not_taken_for_damaged(
    tmp_path: Path,
    tokenizer_folder: Path,
    small_steps: None,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    error: Exception,
) -> None:
    """By default damage is skipped: were it taken for that, the rest of the file would be missing without a word."""
    texts = documents(300, 5)
    paths = [write_source(tmp_path / "source" / f"{i}.{name}", texts[i * 100 : i * 100 + 100]) for i in range(3)]
    config = data_config(tmp_path / "source")
    prepare(config, tokenizer_folder, tmp_path / "uncut")
    for reads in (0, 2):

        def opened(self: LocalSource, index: int, reads: int = reads) -> Any:
            return io.BufferedReader(Failing(self._paths[index], reads if index == 1 else 10**6, error), 512)

        with monkeypatch.context() as patch:
            patch.setattr(LocalSource, "open", opened)
            told = (
                f"{paths[1].stem}.* cannot be read now .*{re.escape(str(error))}.* run the same command again to go on"
            )
            with pytest.raises(InputError, match=told):
                prepare(config, tokenizer_folder, tmp_path / "cut")
        assert (tmp_path / "cut.partial" / "state.json").is_file()
    prepare(config, tokenizer_folder, tmp_path / "cut")
    assert content(tmp_path / "cut") == content(tmp_path / "uncut")


def test_a_file_that_cannot_be_opened_later_on_keeps_what_was_prepared(
    tmp_path: Path, tokenizer_folder: Path, small_steps: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_sources(tmp_path)
    config = data_config(tmp_path / "source")
    prepare(config, tokenizer_folder, tmp_path / "uncut")
    lost, away = tmp_path / "source" / "c.parquet", tmp_path / "c.parquet"
    take = Preparation._take_document

    def lose(self: Preparation, text: str, ids: Any) -> None:
        take(self, text, ids)
        if lost.exists():
            lost.rename(away)

    with monkeypatch.context() as patch:
        patch.setattr(Preparation, "_take_document", lose)
        with pytest.raises(InputError, match=r"c\.parquet cannot be read now .*No such file.* again to go on"):
            prepare(config, tokenizer_folder, tmp_path / "cut")
    away.rename(lost)
    prepare(config, tokenizer_folder, tmp_path / "cut")
    assert content(tmp_path / "cut") == content(tmp_path / "uncut")


def test_a_complete_store_that_was_not_renamed_is_only_renamed(
    tmp_path: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_sources(tmp_path)
    prepare(data_config(tmp_path / "source"), tokenizer_folder, tmp_path / "uncut")

    def fail(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(partial, "publish_folder", fail)
        with pytest.raises(OSError, match="Input/output"):
            prepare(data_config(tmp_path / "source"), tokenizer_folder, tmp_path / "cut")
    monkeypatch.setattr(Preparation, "_read", fail)
    (tmp_path / "source").rename(tmp_path / "away")  # nobody needs it any more
    for _ in range(2):
        prepare(data_config(tmp_path / "source"), tokenizer_folder, tmp_path / "cut")
        assert content(tmp_path / "cut") == content(tmp_path / "uncut")


MOMENTS = ("os:fsync", "os:replace", "compress.data.store.preparation:Preparation._take_document")


def prepare_until_done(config: DataConfig, tokenizer: Path, out: Path) -> int:
    """The number of children that were killed before one finished."""
    kills = 0
    while True:
        child = os.fork()
        if child == 0:
            random.seed(kills * 1000 + os.getpid())
            Signal(at=MOMENTS, call=random.randint(1, 90), after=random.random() < 0.5).install()
            prepare(config, tokenizer, out, visible=False)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        if status == 0:
            return kills
        assert os.WIFSIGNALED(status), status
        assert os.WTERMSIG(status) == signal.SIGKILL
        kills += 1


if __name__ == "__main__":
    import compress.model.load  # noqa: F401  (once, before the forks)

    take_small_steps(setattr)
    here, tokenizer = Path(sys.argv[1]), Path(sys.argv[2])
    for number in range(3):
        print(prepare_until_done(config_of(here, sys.argv[3]), tokenizer, here / f"cut-{number}"))  # noqa: T201
