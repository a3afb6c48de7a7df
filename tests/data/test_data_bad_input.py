"""Bad data by value: a clear error that names file and row, or a skip that is counted."""

import gzip
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from data_world import all_rows, data_config, documents, stream_of, trained_tokenizer, write_source
from helpers import byte_tokenizer

from compress.base.errors import InputError, UsageError
from compress.data import TokenStore, prepare
from compress.data.sources import readers

GOOD = [f"good document number {i}" for i in range(30)]


def make(tmp_path: Path, tokenizer: Path, dataset: Path | str, **options: Any) -> TokenStore:
    config = data_config(dataset, heldout_sequences=0, seq_len=2, **options)
    return prepare(config, tokenizer, tmp_path / "store")


def lines(*rows: object) -> bytes:
    return b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows)


@pytest.mark.faults(18, 19)
@pytest.mark.parametrize(
    ("bad", "fault"),
    [
        (b'{"text": "caf\xe9"}', "is not UTF-8 \\(byte 0xe9 at position 13\\)"),
        (b'{"text": "cut of', "is not a whole JSON object"),
        ({"text": None}, "is null"),
        ({"text": 5}, "holds int, not text"),
        ({"body": "x"}, "has no 'text', only body"),
        (["x"], "is a JSON list, not an object"),
        (b'{"text": "\\ud800"}', "holds half of a surrogate pair"),
        (b'{"a":' * 100_000, "is not a whole JSON object"),
    ],
)
def test_a_bad_line_is_skipped_and_counted_or_an_error(
    tmp_path: Path, tokenizer_folder: Path, bad: object, fault: str
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines({"text": "one"}, bad, {"text": "two"}))
    store = make(tmp_path, tokenizer_folder, path)
    assert all_rows(store) == stream_of(["one", "two"], byte_tokenizer())
    assert store.index["skipped"]["bad_rows"] == 1
    assert f"{path}, line 2 " in store.index["skipped"]["examples"][0]
    with pytest.raises(InputError, match=f"a.jsonl, line 2 {fault}"):
        make(tmp_path / "strict", tokenizer_folder, path, on_bad_row="error")
    assert not (tmp_path / "strict" / "store.partial").exists()


@pytest.mark.faults(18, 19)
def test_bad_values_of_a_table(tmp_path: Path, tokenizer_folder: Path) -> None:
    path = tmp_path / "a.parquet"
    raw = pa.array([b"one", None, b"\xff\xfe", b"two", b""], pa.binary())
    pq.write_table(pa.table({"text": raw.view(pa.string())}), path)
    store = make(tmp_path, tokenizer_folder, path)
    assert all_rows(store) == stream_of(["one", "two"], byte_tokenizer())
    skipped = store.index["skipped"]
    assert (skipped["bad_rows"], skipped["empty"]) == (2, 1)
    assert skipped["examples"] == [
        f"{path}, row 1 is null",
        f"{path}, row 2 is not UTF-8 (byte 0xff at position 0)",
    ]


@pytest.mark.faults(19)
def test_a_file_damaged_midway_is_read_up_to_there(tmp_path: Path, tokenizer_folder: Path) -> None:
    texts = documents(5000)
    plain = lines(*({"text": text} for text in texts))
    for name, packed in (("a.jsonl.gz", gzip.compress(plain)), ("a.jsonl.zst", zstandard.compress(plain))):
        path = tmp_path / name / name
        path.parent.mkdir()
        path.write_bytes(packed[: len(packed) * 2 // 3])
        write_source(path.parent / "b.jsonl", ["after"])
        store = make(path.parent, tokenizer_folder, path.parent)
        assert store.index["skipped"]["damaged_files"] == 1
        assert name in store.index["skipped"]["examples"][0]
        read = store.index["documents"] - 1
        assert read > 1000
        expected = stream_of([*texts[:read], "after"], byte_tokenizer())
        assert all_rows(store) == expected[: len(expected) // 2 * 2]
        with pytest.raises(InputError, match=f"{name}.* is damaged"):
            make(path.parent / "strict", tokenizer_folder, path.parent, on_bad_row="error")


@pytest.mark.faults(19)
def test_a_parquet_file_that_is_cut_or_corrupt(tmp_path: Path, tokenizer_folder: Path) -> None:
    whole = write_source(tmp_path / "whole" / "a.parquet", documents(400)).read_bytes()
    corrupt = bytearray(whole)
    corrupt[len(whole) // 2 : len(whole) // 2 + 40] = b"\xff" * 40
    for name, raw in (("cut", whole[:-100]), ("corrupt", bytes(corrupt)), ("empty", b"")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "a.parquet").write_bytes(raw)
        write_source(folder / "b.parquet", GOOD)
        store = make(folder, tokenizer_folder, folder)
        assert store.index["skipped"]["damaged_files"] == 1
        assert "a.parquet, row " in store.index["skipped"]["examples"][0]
        with pytest.raises(InputError, match=r"a\.parquet, row .* is damaged"):
            make(folder / "strict", tokenizer_folder, folder, on_bad_row="error")


@pytest.mark.parametrize("column", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_an_arrow_file_with_offsets_out_of_its_data(tmp_path: Path, tokenizer_folder: Path, column: Any) -> None:
    """Arrow follows them: reading such values ended the process with a segmentation fault."""
    plain = column.value_type if pa.types.is_dictionary(column) else column
    offsets = np.array([0, 3, 2**31 - 100, 6], dtype=np.int64 if plain == pa.large_string() else np.int32)
    values = pa.Array.from_buffers(plain, 3, [None, pa.py_buffer(offsets.tobytes()), pa.py_buffer(b"onetwo")])
    if column != plain:
        values = pa.DictionaryArray.from_arrays(pa.array([0, 1, 2], pa.int32()), values)
    folder = tmp_path / "source"
    write_source(folder / "b.arrow", ["after"])
    with pa.OSFile(str(folder / "a.arrow"), "wb") as sink, pa.ipc.new_file(sink, pa.schema({"text": column})) as writer:
        writer.write_batch(pa.record_batch([values], ["text"]))
    store = make(tmp_path, tokenizer_folder, folder)
    assert store.index["skipped"]["damaged_files"] == 1
    assert store.index["documents"] == 1
    assert "a.arrow, row 0 is damaged" in store.index["skipped"]["examples"][0]


def test_an_arrow_stream_that_names_a_part_larger_than_any_memory(tmp_path: Path, tokenizer_folder: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    write_source(folder / "b.arrow", ["after"])
    table, sink = pa.table({"text": ["before " * 20] * 10}), pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
        writer.write_table(table)
    stream = sink.getvalue().to_pybytes()
    messages = pa.ipc.MessageReader.open_stream(stream)
    messages.read_next_message()
    length = messages.read_next_message().body.size.to_bytes(8, "little")
    last = stream.rindex(length)
    (folder / "a.arrow").write_bytes(stream[:last] + (1 << 60).to_bytes(8, "little") + stream[last + 8 :])
    store = make(tmp_path, tokenizer_folder, folder)
    assert store.index["documents"] == 10 + 1
    assert "a.arrow, row 10 is damaged" in store.index["skipped"]["examples"][0]


@pytest.mark.faults(18)
@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.jsonl"])
def test_a_missing_text_column_names_the_columns(tmp_path: Path, tokenizer_folder: Path, name: str) -> None:
    path = write_source(tmp_path / name, GOOD)
    with pytest.raises(InputError, match=rf"{name} has no .*'body'.* id, text\. Set data\.text_column"):
        make(tmp_path, tokenizer_folder, path, text_column="body")
    assert not (tmp_path / "store").exists()
    assert not (tmp_path / "store.partial").exists()


@pytest.mark.faults(18)
def test_a_column_of_numbers_is_refused(tmp_path: Path, tokenizer_folder: Path) -> None:
    path = write_source(tmp_path / "a.parquet", GOOD)
    with pytest.raises(InputError, match=r"a\.parquet: the column 'id' holds int64, not text"):
        make(tmp_path, tokenizer_folder, path, text_column="id")


@pytest.mark.parametrize("column", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())])
def test_every_arrow_type_of_text_is_read(tmp_path: Path, tokenizer_folder: Path, column: Any) -> None:
    table = pa.table({"text": pa.array(["one", "two", "one"]).cast(column)})
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    store = make(tmp_path, tokenizer_folder, tmp_path / "a.arrow")
    assert all_rows(store) == stream_of(["one", "two", "one"], byte_tokenizer())


@pytest.mark.faults(20)
@pytest.mark.parametrize("rows", [[], [{"text": ""}, {"text": "  \n"}], [{"text": None}]])
def test_nothing_to_read_is_no_tokens(tmp_path: Path, tokenizer_folder: Path, rows: list[object]) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(*rows))
    with pytest.raises(InputError, match=r"a\.jsonl gives no tokens"):
        make(tmp_path, tokenizer_folder, path)


def test_a_device_is_no_text(tmp_path: Path, tokenizer_folder: Path) -> None:
    with pytest.raises(InputError, match="/dev/null is neither a file nor a folder"):
        make(tmp_path, tokenizer_folder, Path("/dev/null"))


def test_too_little_text_says_how_much_there_is(tmp_path: Path, tokenizer_folder: Path) -> None:
    path = write_source(tmp_path / "a.txt", ["abc"] * 25)  # 100 tokens with EOS
    with pytest.raises(
        InputError, match=r"only 100 training tokens of the 500 asked for, .* data\.tokens to 100 or less"
    ):
        make(tmp_path, tokenizer_folder, path, tokens=500)
    distinct = write_source(tmp_path / "b.txt", [f"{i:03d}" for i in range(25)])
    for heldout, message in (
        (60, "has 100 tokens altogether, too few to hold out 60"),
        (50, "leaves 0 training tokens"),
    ):
        with pytest.raises(InputError, match=message):
            prepare(data_config(distinct, heldout_sequences=heldout, seq_len=2), tokenizer_folder, tmp_path / "few")


def test_sources_that_are_not_there_or_unclear(tmp_path: Path, tokenizer_folder: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.md").touch()
    write_source(tmp_path / "mixed" / "a.txt", GOOD)
    write_source(tmp_path / "mixed" / "b.parquet", GOOD)
    for dataset, error, message in (
        (tmp_path / "nowhere", InputError, "nowhere does not exist"),
        ("no/such.parquet", InputError, "does not exist"),
        (tmp_path / "empty", InputError, "has no data files"),
        (f"{tmp_path}/*.parquet", InputError, "has no data files"),
        (tmp_path / "notes.md", InputError, "none of the known endings"),
        (tmp_path / "mixed", UsageError, r"several formats \(parquet, txt\)"),
        ("hub:nonsense", UsageError, "hub:ORG/NAME"),
        ("hub:a/b", UsageError, "data.tokens is required"),
    ):
        with pytest.raises(error, match=message):
            make(tmp_path, tokenizer_folder, dataset)
    with pytest.raises(UsageError, match=r"data\.split applies to hub"):
        make(tmp_path, tokenizer_folder, tmp_path / "mixed", split="test")
    with pytest.raises(UsageError, match="keep one"):
        make(tmp_path, tokenizer_folder, "hub:a/b:c", config="d", tokens=5)


@pytest.mark.faults(21)
def test_a_line_beyond_the_limit_is_passed_over(
    tmp_path: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "MAX_ROW_BYTES", 2**20)
    path = write_source(tmp_path / "a.txt", ["one", "x" * (2**20 + 5), "y" * (2**20 - 1), "two"])
    store = make(tmp_path, tokenizer_folder, path)
    assert store.index["documents"] == 3
    assert store.index["skipped"]["examples"] == [f"{path}, line 2 is longer than 1 MiB"]


PEAK = """
import resource, sys
from pathlib import Path
from compress.data import DataConfig, prepare
for name in ("small", "large"):
    source, tokenizer, out = f"{sys.argv[1]}/{name}.jsonl", f"{sys.argv[1]}/tokenizer", Path(sys.argv[1], name)
    prepare(DataConfig(dataset=source, seq_len=64, heldout_sequences=1), tokenizer, out)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.faults(21)
def test_a_10_mb_line_takes_bounded_memory(tmp_path: Path) -> None:
    trained_tokenizer(["long word after word"] * 10, 300).save_pretrained(tmp_path / "tokenizer")
    for name, length in (("small", 10_000), ("large", 10_000_000)):
        write_source(tmp_path / f"{name}.jsonl", ["word " * (length // 5), "after " * 80])
    done = subprocess.run([sys.executable, "-c", PEAK, str(tmp_path)], capture_output=True, text=True, check=True)
    small, large = map(int, done.stdout.split())
    assert large - small < 300, (small, large)  # MiB: the line, its text and its ids, each a few times over


def test_a_full_disk_is_a_clear_error_and_nothing_is_lost(tmp_path: Path, tokenizer_folder: Path) -> None:
    from compress.base.errors import CompressError

    path = write_source(tmp_path / "a.txt", documents(2000))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(CompressError, match="No space is left"):
            make(tmp_path, tokenizer_folder, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not (tmp_path / "store").exists()
    make(tmp_path, tokenizer_folder, path).verify()
