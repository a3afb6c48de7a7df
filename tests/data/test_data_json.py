""".json as text: lines or an array, alone, in a folder, by a glob; and what is not read is said."""

import gzip
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard
from data_world import all_rows, data_config, documents, stream_of, write_source
from helpers import byte_tokenizer
from hypothesis import example, given
from hypothesis import strategies as st

from compress.base import progress
from compress.base.errors import CompressError, InputError
from compress.base.signals import StopRequest
from compress.data import find_source, prepare, text_fingerprint, text_rows
from compress.data.preflight import check_source
from compress.data.sources import json_files, readers
from compress.data.sources.instructions import Form
from compress.data.sources.readers import Layout, read_rows
from compress.data.sources.rows import Row
from compress.data.sources.stream import Position, Retry, read_items
from compress.model.framing import Framing

ROWS = [{"id": i, "text": text} for i, text in enumerate([*documents(30), 'brackets ]}[{ and "quotes\\" , \n'])]
PACKED: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}
CONTENTS = {
    "lines": "".join(json.dumps(row) + "\n" for row in ROWS),
    "array": json.dumps(ROWS),
    "pretty array": json.dumps(ROWS, indent=2, ensure_ascii=False),
    "pretty object": json.dumps({"builder": "x", "text": "not a row", "splits": [{"text": "no row"}]}, indent=2),
    "object": json.dumps({"builder": "x", "splits": {}}),
    "empty": "",
    "blank": " \n\n",
    "empty array": "[]",
    "strings": json.dumps(["one", "two"]),
    "number": "12\n",
    "damaged array": json.dumps(ROWS)[:-40],
    "other column": json.dumps([{"body": "x", "id": 1}]),
}
METADATA = {
    "pretty object": "metadata", "object": "no 'text', only builder, splits", "empty": "empty", "blank": "empty",
    "empty array": "empty", "strings": "metadata", "number": "metadata", "other column": "no 'text', only body, id",
}  # fmt: skip
ALONE = {
    "pretty object": "is one JSON object over several lines", "strings": "holds JSON of type str, not objects",
    "number": "holds JSON of type int, not objects",
}  # fmt: skip


TEXT = Form("text", ("text",))


def texts_of(dataset: Path | str, **options: Any) -> list[str]:
    source = find_source(data_config(dataset, **options))
    items = read_items(source, TEXT, Position(0, 0), Retry(StopRequest(), tries=0))
    return [item.row.text for item in items if item.row.text is not None]


def expected(content: str) -> list[str]:
    """By Python's own reader: of the whole, of each line, or of the array up to where it was cut."""
    if content.startswith("{"):
        return [json.loads(line)["text"] for line in content.splitlines()]
    while True:
        try:
            return [row["text"] for row in json.loads(content)]
        except ValueError:
            content = content[: content.rindex(', {"id"')] + "]"


@pytest.mark.parametrize("bom", ["", "\ufeff"])
@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize("kind", CONTENTS)
def test_what_is_read_of_a_json_file(tmp_path: Path, kind: str, packed: str, bom: str) -> None:
    """A folder and a glob have it beside a file of lines, which are read either way."""
    content = CONTENTS[kind]
    path = tmp_path / "text" / f"m.json{packed}"
    write_source(tmp_path / "text" / "a.jsonl", ["before"])
    path.write_bytes(PACKED[packed]((bom + content).encode()))
    mine = [] if kind in METADATA else expected(content)
    assert texts_of(tmp_path / "text") == ["before", *mine]
    assert texts_of(f"{tmp_path}/text/*.js*") == ["before", *mine]
    unread = f"1 file is not read: m.json{packed} ({METADATA[kind]})." if kind in METADATA else ""
    for dataset in (tmp_path / "text", f"{tmp_path}/te*/*"):
        sentence = find_source(data_config(dataset)).unread.sentence()
        assert sentence == (unread.replace("m.json", "text/m.json") if "*" in str(dataset) else unread)
    if kind in ALONE:
        with pytest.raises(InputError, match=f"m.json{packed} {ALONE[kind]}"):
            texts_of(path)
    elif kind in ("object", "other column"):
        with pytest.raises(InputError, match="has no 'text' in any of its first 1 rows; they have b"):
            texts_of(path)
    else:
        assert texts_of(path) == mine


@pytest.mark.parametrize("kind", METADATA)
def test_a_folder_with_nothing_else_says_why_it_is_not_read(tmp_path: Path, kind: str) -> None:
    (tmp_path / "m.json").write_text(CONTENTS[kind])
    with pytest.raises(InputError, match=r"has no data files: .*\. 1 file is not read: m\.json") as caught:
        texts_of(tmp_path)
    assert f"({METADATA[kind]})" in str(caught.value)


def test_an_array_and_lines_make_one_store(tmp_path: Path, tokenizer_folder: Path) -> None:
    texts = documents(60)
    write_source(tmp_path / "text" / "a.jsonl", texts[:20])
    (tmp_path / "text" / "b.json").write_text(json.dumps([{"text": text} for text in texts[20:40]]))
    (tmp_path / "text" / "c.json").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[40:]))
    store = prepare(data_config(tmp_path / "text", heldout_sequences=0, seq_len=2), tokenizer_folder, tmp_path / "s")
    wanted = stream_of(texts, byte_tokenizer())
    assert all_rows(store) == wanted[: len(wanted) // 2 * 2]


@pytest.mark.faults(19)
def test_a_damaged_array_ends_its_file_and_no_other(tmp_path: Path, tokenizer_folder: Path) -> None:
    whole = json.dumps([{"text": "one"}, {"text": "two"}, {"text": "three"}])
    faults = {
        "cut": (whole[:-20], 2), "broken": (whole.replace('"text": "two"', '"text": two'), 1),
        "no comma": (whole.replace("}, {", "} {", 1), 0), "wrong bracket": (whole[:-1] + "}", 3),
        "one more comma": (whole[:-1] + ",]", 3), "more after it": (whole + "[]", 3),
        "deep": (whole[:-1] + ', {"a":' + '[' * 100_000 + ']' * 100_000 + "}]", 3),
    }  # fmt: skip
    for name, (content, read) in faults.items():
        folder = tmp_path / name
        write_source(folder / "b.jsonl", ["after"])
        (folder / "a.json").write_text(content)
        config = data_config(folder, heldout_sequences=0, seq_len=2)
        store = prepare(config, tokenizer_folder, tmp_path / f"{name} store")
        assert store.index["documents"] == read + 1, name
        assert store.index["skipped"]["damaged_files"] == 1, name
        assert f"a.json, row {read} is damaged" in store.index["skipped"]["examples"][0]
        with pytest.raises(InputError, match=r"a\.json, row .* is damaged"):
            prepare(data_config(folder, on_bad_row="error"), tokenizer_folder, tmp_path / f"{name} strict")


def test_what_is_wrong_with_an_element_is_its_own_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (json_files, readers):
        monkeypatch.setattr(module, "MAX_ROW_BYTES", 2**20)
    long = json.dumps({"text": "x ]}" * 2**18})
    parts = [b'{"text": "one"}', b'{"text": "caf\xe9"}', b'"two"', long.encode(), b'{"text": null}', b'{"text": "end"}']
    (tmp_path / "a.json").write_bytes(b"[" + b",\n".join(parts) + b"]")
    with (tmp_path / "a.json").open("rb") as file:
        rows = list(read_rows(file, "a.json", Layout("json", None), TEXT, start=0, size=2**21))
    assert [row.number for row in rows] == list(range(6))
    assert [row.text for row in rows] == ["one", None, None, None, None, "end"]
    assert [row.fault for row in rows[1:5]] == [
        "is not UTF-8 (byte 0xe9 at position 13)", "is a JSON str, not an object", "is longer than 1 MiB", "is null",
    ]  # fmt: skip


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
characters = st.characters(exclude_categories=["Cs"])
objects = st.dictionaries(st.text(), values, max_size=3)


@given(
    st.lists(st.tuples(objects, st.text(characters)), max_size=6),
    st.sampled_from([None, 0, 3]),
    st.booleans(),
    st.sampled_from(["", " \n\t", "\ufeff", "\ufeff  "]),
    st.integers(1, 9),
    st.integers(0, 7),
)
@example([({}, '\\"')], None, True, "", 1, 0)
def test_an_array_is_read_as_python_reads_it_in_whatever_pieces(
    rows: list[tuple[dict[str, Any], str]], indent: int | None, escaped: bool, before: str, chunk: int, start: int
) -> None:
    content = json.dumps([{**row, "text": text} for row, text in rows], indent=indent, ensure_ascii=escaped)
    raw = (before + content + " \n").encode("utf-8", "surrogatepass")
    wanted = [Row(i, row["text"]) for i, row in enumerate(json.loads(content))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_files, "CHUNK_BYTES", chunk)
        found = list(read_rows(io.BytesIO(raw), "a.json", Layout("json", None), TEXT, start=start, size=len(raw)))
    readable = [row for row in found if row.fault is None]
    assert [(row.number, row.text) for row in readable] == [
        (row.number, row.text) for row in wanted[start:] if row.number in {row.number for row in readable}
    ]
    # what is written unescaped and is no Unicode cannot be read, and nothing else cannot
    assert all("is not UTF-8" in str(row.fault) and not escaped for row in found if row.fault)
    assert len(found) == len(wanted[start:])


@pytest.mark.parametrize("packed", PACKED)
def test_reading_goes_on_at_any_row(tmp_path: Path, packed: str) -> None:
    (tmp_path / f"a.json{packed}").write_bytes(PACKED[packed](CONTENTS["pretty array"].encode()))
    source = find_source(data_config(tmp_path / f"a.json{packed}"))
    for start in range(len(ROWS) + 2):
        items = read_items(source, TEXT, Position(0, start), Retry(StopRequest(), tries=0))
        assert [item.row.text for item in items] == [row["text"] for row in ROWS[start:]]


def test_an_array_takes_bounded_memory(tmp_path: Path) -> None:
    import tracemalloc

    draw = random.Random(0)
    with (tmp_path / "a.json").open("w") as file:
        file.write("[")
        for i in range(4000):
            file.write("," * (i > 0) + json.dumps({"text": "".join(draw.choices("abc \n\u20ac", k=2000))}))
        file.write("]")
    assert (tmp_path / "a.json").stat().st_size > 2**23
    source = find_source(data_config(tmp_path / "a.json"))
    tracemalloc.start()
    count = sum(1 for _ in read_items(source, TEXT, Position(0, 0), Retry(StopRequest(), tries=0)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 4000
    assert peak < 2**22


def test_what_is_not_read_is_said_once_in_a_command(
    tmp_path: Path, tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_source(tmp_path / "text" / "a.jsonl", documents(200))
    for name in ("README.md", "notes.docx", ".hidden", "sub/b.csv"):
        (tmp_path / "text" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "text" / name).touch()
    (tmp_path / "text" / "dataset_info.json").write_text("{\n}")
    config = data_config(tmp_path / "text")
    told = f"{tmp_path}/text: 4 files are not read: dataset_info.json (metadata), README.md, notes.docx, sub/b.csv."
    progress.say_once.cache_clear()
    check_source(config)
    prepare(config, tokenizer_folder, tmp_path / "store")
    text_rows(str(tmp_path / "text"), byte_tokenizer(), 1, 100, framing=Framing())
    assert capsys.readouterr().err.count(told) == 1
    progress.say_once.cache_clear()
    prepare(config, tokenizer_folder, tmp_path / "store")
    assert told not in capsys.readouterr().err  # nothing was read
    text_rows(str(tmp_path / "text"), byte_tokenizer(), 1, 100, framing=Framing())
    assert capsys.readouterr().err.count(told) == 1


def test_many_are_counted(tmp_path: Path) -> None:
    write_source(tmp_path / "a.jsonl", ["x"])
    for i in range(9):
        (tmp_path / f"{i}.md").touch()
    told = find_source(data_config(tmp_path)).unread.sentence()
    assert told == "9 files are not read: 0.md, 1.md, 2.md, 3.md, 4.md and 4 more."


def test_a_folder_that_a_glob_names_is_not_passed_over_in_silence(tmp_path: Path) -> None:
    for name in ("a.jsonl", "sub/b.jsonl"):
        write_source(tmp_path / name, ["x"])
    assert find_source(data_config(f"{tmp_path}/*")).unread.sentence().endswith("/sub (a folder).")
    assert find_source(data_config(f"{tmp_path}/**")).unread.sentence() == ""


def test_metadata_is_no_part_of_what_a_store_was_made_from(tmp_path: Path, tokenizer_folder: Path) -> None:
    """So it may come, go and change, as under versions that read no .json in a folder; text may not."""
    write_source(tmp_path / "text" / "a.jsonl", documents(60))
    config = data_config(tmp_path / "text")
    prepare(config, tokenizer_folder, tmp_path / "store")
    fingerprint = text_fingerprint(tmp_path / "text")
    (tmp_path / "text" / "state.json").write_text('{\n  "text": 1\n}')
    prepare(config, tokenizer_folder, tmp_path / "store")
    assert text_fingerprint(tmp_path / "text") == fingerprint
    (tmp_path / "text" / "more.json").write_text('[{"text": "more"}]')
    assert text_fingerprint(tmp_path / "text") != fingerprint
    with pytest.raises(CompressError, match="the source is another"):
        prepare(config, tokenizer_folder, tmp_path / "store")


def test_the_column_that_is_asked_for_decides(tmp_path: Path) -> None:
    write_source(tmp_path / "a.jsonl", ["x"])
    (tmp_path / "b.json").write_text('[{"body": "y"}]')
    assert [file.name for file in find_source(data_config(tmp_path, text_column="body")).files] == ["a.jsonl", "b.json"]
    assert [file.name for file in find_source(data_config(tmp_path)).files] == ["a.jsonl"]
