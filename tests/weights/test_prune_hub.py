"""A teacher on the hub, read over a real connection: only what the student keeps comes over it, whatever it does.

The client runs in a process of its own, since the hub's address is read at import.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import Outcome
from helpers import run_cli, save_tiny_model
from loopback_hub import REPOSITORY, Hub, client_environment, serving
from safetensors.torch import load_file, save_file

from compress.base.disk import sha256_file, sha256_tree
from compress.model.files import model_fingerprint
from compress.prune import prune
from compress.weights.headers import file_start, read_header

KEPT = "1,3"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three files: one whose layers all go, one with kept layers among others, and one that is kept whole."""
    folder = save_tiny_model(
        tmp_path_factory.mktemp("teacher"), hidden_size=64, intermediate_size=256, tie_word_embeddings=False
    )
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    parts: dict[str, dict[str, Any]] = {"dropped": {}, "mixed": {}, "outside": {}}
    for name, tensor in state.items():
        where = "outside" if ".layers." not in name else "dropped" if ".layers.0." in name else "mixed"
        parts[where][name] = tensor
    for where, tensors in parts.items():
        save_file(tensors, folder / f"{where}.safetensors", metadata={"format": "pt"})
    weight_map = {name: f"{where}.safetensors" for where, tensors in parts.items() for name in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


@pytest.fixture
def hub(teacher: Path) -> Iterator[Hub]:
    with serving(Hub()) as hub:
        hub.commit({path.name: path.read_bytes() for path in teacher.iterdir()})
        yield hub


def client(hub: Hub, tmp_path: Path, *arguments: str) -> Outcome:
    done = run_cli("prune", REPOSITORY, *arguments, "--json", **client_environment(hub, tmp_path / "home"))
    assert "hf_not_a_real_token" not in done.stdout + done.stderr
    return done


def test_only_what_the_student_keeps_is_downloaded(tmp_path: Path, teacher: Path, hub: Hub) -> None:
    done = client(hub, tmp_path, str(tmp_path / "student"), "--keep", KEPT, "--no-check")
    assert done.returncode == 0, done.stderr
    local = prune(teacher, tmp_path / "local", KEPT, check=False)
    streamed = sha256_tree(tmp_path / "student")
    assert {**streamed, "prune.json": ""} == {**sha256_tree(tmp_path / "local"), "prune.json": ""}
    record = json.loads(done.stdout)
    assert record["sha256"] == local.record["sha256"]
    assert record["manifest"]["inputs"] == {"teacher": model_fingerprint(teacher)}

    files = {path.name: path for path in teacher.glob("*.safetensors")}
    kept = {name: len(file_start(path)) for name, path in files.items()}
    for name, path in files.items():
        for tensor in read_header(path):
            if ".layers." not in tensor.name or tensor.name.split(".")[2] in KEPT.split(","):
                kept[name] += tensor.num_bytes
    assert {name: hub.served[name] for name in files} == kept
    whole = sum(path.stat().st_size for path in files.values())
    assert record["streamed"] == {"commit": hub.main, "downloaded_bytes": sum(kept.values()), "of_bytes": whole}
    assert sum(kept.values()) < 0.7 * whole
    assert not list((tmp_path / "home").rglob("*.safetensors"))


@pytest.mark.faults(12)
def test_a_flaky_hub_gives_the_same_student(tmp_path: Path, teacher: Path, hub: Hub) -> None:
    hub.fault_paths = tuple(path.name for path in teacher.glob("*.safetensors"))
    hub.faults = [503, None, "drop", 429, "reset", None, "drop", "drop", "stall", None, 500, "drop"]
    done = client(hub, tmp_path, str(tmp_path / "student"), "--keep", KEPT, "--stream")
    assert done.returncode == 0, done.stderr
    assert hub.faults == []
    assert json.loads(done.stdout)["sha256"] == prune(teacher, tmp_path / "local", KEPT, check=False).record["sha256"]


@pytest.mark.faults(15)
@pytest.mark.parametrize("name", ["../evil.safetensors", "/etc/passwd", "C:\\evil.safetensors"])
def test_an_index_on_the_hub_that_points_outside_is_refused(tmp_path: Path, teacher: Path, hub: Hub, name: str) -> None:
    files = {path.name: path.read_bytes() for path in teacher.iterdir()}
    index = json.loads(files["model.safetensors.index.json"])
    index["weight_map"]["model.norm.weight"] = name
    hub.commit({**files, "model.safetensors.index.json": json.dumps(index).encode()})
    done = client(hub, tmp_path, str(tmp_path / "student"), "--no-check")
    assert done.returncode == 3, done.stderr
    assert "not a plain file name" in done.stderr
    assert not any("evil" in request or "passwd" in request for request in hub.requests)
    assert not (tmp_path / "student").exists()


def test_a_header_that_lies_is_refused(tmp_path: Path, teacher: Path, hub: Hub) -> None:
    files = {path.name: path.read_bytes() for path in teacher.iterdir()}
    for lie, said in ((b"\xff" * 8 + b"{}", "not a safetensors file"), (b"\x02" + bytes(7) + b"{}" + b"x", "mixed")):
        hub.commit({**files, "mixed.safetensors": lie})
        done = client(hub, tmp_path, str(tmp_path / "student"), "--no-check")
        assert done.returncode == 3, done.stderr
        assert said in done.stderr
    assert not (tmp_path / "student").exists()


def test_a_hub_without_ranges_is_refused(tmp_path: Path, hub: Hub) -> None:
    hub.ranges = False
    done = client(hub, tmp_path, str(tmp_path / "student"), "--keep", KEPT, "--no-check")
    assert done.returncode == 3, done.stderr
    assert "only as a whole" in done.stderr
    assert not (tmp_path / "student").exists()


@pytest.mark.slow
def test_a_hub_that_stays_away_is_told(tmp_path: Path, teacher: Path, hub: Hub) -> None:
    hub.fault_paths = ("mixed.safetensors",)
    hub.faults = ["drop"] * 20
    done = client(hub, tmp_path, str(tmp_path / "student"), "--keep", KEPT, "--no-check")
    assert done.returncode == 3, done.stderr
    assert f"Error: {REPOSITORY}" in done.stderr
    assert "network" in done.stderr
    assert not (tmp_path / "student").exists()


def test_the_check_takes_the_whole_teacher_and_then_nothing_more_is_downloaded(
    tmp_path: Path, teacher: Path, hub: Hub
) -> None:
    done = client(hub, tmp_path, str(tmp_path / "student"), "--keep", KEPT)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["check"]["passed"]
    assert record["streamed"] is None
    assert hub.served["dropped.safetensors"] == (teacher / "dropped.safetensors").stat().st_size
    hub.served.clear()
    done = client(hub, tmp_path, str(tmp_path / "again"), "--keep", KEPT, "--no-check")
    assert json.loads(done.stdout)["streamed"] is None
    assert not any(name.endswith(".safetensors") for name in hub.served)
    assert sha256_file(tmp_path / "again/model-00001-of-00002.safetensors") == sha256_file(
        tmp_path / "student/model-00001-of-00002.safetensors"
    )


def test_streaming_is_refused_where_it_cannot_be(tmp_path: Path, teacher: Path, hub: Hub) -> None:
    done = client(hub, tmp_path, str(tmp_path / "student"), "--stream", "--layers", "2", "--by", "magnitude")
    assert done.returncode == 2
    assert "measuring layers needs all of" in done.stderr
    assert not any(name.endswith(".safetensors") for name in hub.served)
