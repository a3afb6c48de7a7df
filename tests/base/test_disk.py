"""Results are complete or absent, and a manifest tells whether they still hold."""

import hashlib
import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from compress.base import disk
from compress.base.disk import (
    Damaged,
    read_json,
    read_rows,
    sha256_file,
    sha256_tree,
    staged_folder,
    write_json,
    write_text,
)
from compress.base.errors import InputError


def test_a_staged_folder_appears_whole(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with staged_folder(out) as folder:
        (folder / "a.txt").write_text("a")
        assert not out.exists()
    assert sha256_tree(out) == {"a.txt": hashlib.sha256(b"a").hexdigest()}
    assert [p.name for p in out.parent.iterdir()] == ["out"]


def test_a_failed_staged_folder_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), staged_folder(tmp_path / "out") as folder:
        (folder / "no such folder" / "a.txt").write_text("a")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "state.json"
    write_json(target, {"step": 1})
    script = f"""
        import resource, signal
        from pathlib import Path
        from compress.base.disk import write_text
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        try:
            write_text(Path({str(target)!r}), "x" * 10_000)
        except OSError as error:
            print(error.strerror)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == os.strerror(27)
    assert read_json(target) == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["state.json"]


def test_text_that_is_no_unicode_is_written_as_its_escape(tmp_path: Path) -> None:
    value = {"text": "caf\ud800", "path": b"caf\xe9".decode(errors="surrogateescape")}
    write_json(tmp_path / "a.json", value)
    assert (tmp_path / "a.json").read_bytes().isascii()
    assert read_json(tmp_path / "a.json") == value


def test_read_json_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    for name in ("absent.json", "bad.json", "deep.json"):
        with pytest.raises(InputError, match=name):
            read_json(tmp_path / name)


_LINE_ENDS = "\x85\u2028\u2029"
"""What str.splitlines splits at and JSON need not escape."""


@settings(max_examples=50, deadline=None)
@given(values=st.lists(st.dictionaries(st.text(), st.text())), last=st.text(max_size=5))
@example(values=[{"question": _LINE_ENDS}], last=_LINE_ENDS)
def test_json_lines_come_back_whatever_text_they_hold(
    values: list[Any], last: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("lines") / "a.jsonl"
    write_text(path, "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values))
    assert read_rows(path) == values
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(last, ensure_ascii=False))  # whole, though no newline ends it
    for damaged in get_args(Damaged):
        assert read_rows(path, damaged=damaged) == [*values, last]


@pytest.mark.parametrize(
    ("content", "line", "before", "torn"),
    [
        (b'{"a": 1}\n{"a": ', 2, 1, True),
        (b'{"a": 1}\n{"a": \n', 2, 1, False),
        (b'{"a": 1}\n{"a": "\xff"}\n{"a": 2}\n', 2, 1, False),
        (b'{"a": 1}\n' + b"\0" * 40, 2, 1, True),  # what a file system leaves of lines that it had no time to write
        (b"[" * 100_000 + b"\n1\n", 1, 0, False),
        (b"", None, 0, False),
    ],
)
def test_damaged_json_lines_are_refused_or_left_out_as_asked(
    content: bytes, line: int | None, before: int, torn: bool, tmp_path: Path
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    assert read_rows(path, damaged="end") == [{"a": 1}] * before
    modes: dict[Damaged, bool] = {"refused": line is not None, "last left out": line is not None and not torn}
    for damaged, fails in modes.items():
        if not fails:
            assert read_rows(path, damaged=damaged) == [{"a": 1}] * before
            continue
        with pytest.raises(InputError, match=rf"a\.jsonl, line {line} is not JSON"):
            read_rows(path, damaged=damaged)


def test_a_file_is_read_once_and_again_when_it_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when size and time of change are set back to what they were."""
    path, reads = tmp_path / "weights", []
    read = disk._read_hash
    monkeypatch.setattr(disk, "_read_hash", lambda path, stop: reads.append(path) or read(path, stop))
    path.write_bytes(b"one")
    assert [sha256_file(path) for _ in range(2)] == [hashlib.sha256(b"one").hexdigest()] * 2
    assert len(reads) == 2, "a file of just now may be written again within the clock's tick"
    time.sleep(0.15)
    assert [sha256_file(path) for _ in range(3)] == [hashlib.sha256(b"one").hexdigest()] * 3
    assert len(reads) == 3
    (tmp_path / "link").hardlink_to(path)
    time.sleep(0.15)
    before = path.stat()
    path.write_bytes(b"two")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert sha256_file(path) == sha256_file(tmp_path / "link") == hashlib.sha256(b"two").hexdigest()
