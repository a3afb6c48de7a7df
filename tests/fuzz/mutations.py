"""Random damage to bytes, JSON values and folders, as hypothesis strategies."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import strategies as st

from compress.base.disk import sha256_tree

NUMBERS = st.one_of(
    st.sampled_from([0, 1, -1, 2, 3, 7, 255, 2**15, 2**31, 2**63, -(2**63), 10**30]),
    st.integers(-300, 300),
    st.floats(allow_nan=True, allow_infinity=True),
)
WORDS = st.sampled_from(
    ["", "a", "..", "../x", "/", "~", "~nobody/x", "null", "nan", "-1", "1e400", "$RUN", "x" * 300, "\0", "é\ud800"]
)
LEAVES = st.one_of(st.none(), st.booleans(), NUMBERS, WORDS, st.text(max_size=20))
JUNK = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.one_of(WORDS, st.text(max_size=8)), inner, max_size=4)
    ),
    max_leaves=6,
)


class Edit(NamedTuple):
    """One change at a place given as a share (0 to 1) of whatever there is."""

    kind: str
    at: float
    value: Any


_SHARE = st.floats(0, 1, exclude_max=True)
_BYTE_EDITS = st.one_of(
    st.builds(Edit, st.just("flip"), _SHARE, st.integers(0, 7)),
    st.builds(Edit, st.just("set"), _SHARE, st.integers(0, 255)),
    st.builds(Edit, st.just("cut"), _SHARE, st.none()),
    st.builds(Edit, st.just("drop"), _SHARE, st.integers(1, 64)),
    st.builds(Edit, st.just("insert"), _SHARE, st.binary(min_size=1, max_size=16)),
    st.builds(Edit, st.just("repeat"), _SHARE, st.integers(1, 200)),
    st.builds(Edit, st.just("replace"), st.just(0.0), st.binary(max_size=64)),
)
_JSON_EDITS = st.one_of(
    st.builds(Edit, st.just("json-set"), _SHARE, JUNK),
    st.builds(Edit, st.just("json-set"), _SHARE, LEAVES),
    st.builds(Edit, st.just("json-delete"), _SHARE, st.none()),
    st.builds(Edit, st.just("json-add"), _SHARE, st.tuples(st.text(max_size=8), JUNK)),
)
BYTE_EDITS = st.lists(_BYTE_EDITS, min_size=1, max_size=4)
JSON_EDITS = st.lists(_JSON_EDITS, min_size=1, max_size=4)


def apply_to_bytes(raw: bytes, edits: list[Edit]) -> bytes:
    """`raw` after all edits."""
    for kind, share, value in edits:
        at = int(share * len(raw))
        if kind == "flip" and raw:
            raw = raw[:at] + bytes([raw[at] ^ (1 << value)]) + raw[at + 1 :]
        elif kind == "set" and raw:
            raw = raw[:at] + bytes([value]) + raw[at + 1 :]
        elif kind == "cut":
            raw = raw[:at]
        elif kind == "drop":
            raw = raw[:at] + raw[at + value :]
        elif kind == "insert":
            raw = raw[:at] + value + raw[at:]
        elif kind == "repeat":
            raw = raw[: at + value] + raw[at:]
        elif kind == "replace":
            raw = value
    return raw


def apply_to_json(value: Any, edits: list[Edit]) -> Any:
    """A copy of a JSON value after all edits."""
    holder = {"": json.loads(json.dumps(value))}
    for kind, share, new in edits:
        places = list(_places(holder))
        container, key = places[int(share * len(places))]
        if kind == "json-set":
            container[key] = new
        elif kind == "json-delete" and container is not holder:
            del container[key]
        elif kind == "json-add" and isinstance(container[key], dict):
            container[key][new[0]] = new[1]
        elif kind == "json-add" and isinstance(container[key], list):
            container[key].append(new[1])
    return holder[""]


def _places(container: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) in a JSON value."""
    keys = container.keys() if isinstance(container, dict) else range(len(container))
    for key in list(keys):
        yield container, key
        if isinstance(container[key], dict | list):
            yield from _places(container[key])


class FileEdit(NamedTuple):
    """What happens to one file of a folder: bytes changed, JSON changed, removed, or made a folder."""

    name: str
    kind: str
    edits: list[Edit]


def file_edits(names: list[str]) -> st.SearchStrategy[list[FileEdit]]:
    """Damage to some of the files `names` of a folder."""
    name = st.sampled_from(names)
    json_name = st.sampled_from([n for n in names if n.endswith((".json", ".jsonl"))] or names)
    edit = st.one_of(
        st.builds(FileEdit, name, st.just("bytes"), BYTE_EDITS),
        st.builds(FileEdit, json_name, st.just("json"), JSON_EDITS),
        st.builds(FileEdit, name, st.just("remove"), st.just([])),
        st.builds(FileEdit, name, st.just("folder"), st.just([])),
    )
    return st.lists(edit, min_size=1, max_size=3)


def damage(folder: Path, edits: list[FileEdit]) -> None:
    """Apply edits to the files of a folder that are still there."""
    for name, kind, changes in edits:
        path = folder / name
        if not path.is_file():
            continue
        if kind == "bytes":
            path.write_bytes(apply_to_bytes(path.read_bytes(), changes))
        elif kind == "json":
            _damage_json(path, changes)
        else:
            path.unlink()
            if kind == "folder":
                path.mkdir()


def _damage_json(path: Path, changes: list[Edit]) -> None:
    """Edit the JSON of a file (each line for itself in a .jsonl; the header of a .safetensors)."""
    try:
        if path.suffix == ".jsonl":
            rows = apply_to_json([json.loads(line) for line in path.read_text().splitlines()], changes)
            text = "".join(json.dumps(row) + "\n" for row in (rows if isinstance(rows, list) else [rows]))
        elif path.suffix == ".safetensors":
            raw = path.read_bytes()
            size = int.from_bytes(raw[:8], "little")
            header = json.dumps(apply_to_json(json.loads(raw[8 : 8 + size]), changes)).encode()
            path.write_bytes(len(header).to_bytes(8, "little") + header + raw[8 + size :])
            return
        else:
            text = json.dumps(apply_to_json(json.loads(path.read_text()), changes))
    except (ValueError, RecursionError):
        return  # an edit before this one left no JSON
    path.write_text(text)


def rehash(folder: Path) -> None:
    """Make a checkpoint's manifest agree with its files again, so that what is wrong in them is looked at."""
    if (folder / "manifest.json").is_dir():
        return
    (folder / "manifest.json").unlink(missing_ok=True)
    (folder / "manifest.json").write_text(json.dumps({"sha256": sha256_tree(folder)}))
