"""Checkpoints and logs that hold what no run wrote: passed over by name, or refused in words."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from distill_world import World

from compress.base.disk import read_json, sha256_tree, write_json
from compress.base.errors import InputError
from compress.distill import DistillConfig

Options = Callable[..., DistillConfig]


@pytest.fixture(scope="module")
def cut_short(base_world: World, options: Options, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of eight steps that lost its student."""
    world = dataclasses.replace(base_world, root=tmp_path_factory.mktemp("cut-short"))
    world.run("run", options())
    shutil.rmtree(world.root / "run" / "student")
    return world.root / "run"


@pytest.fixture
def finished(world: World, options: Options, cut_short: Path) -> tuple[World, DistillConfig, Path]:
    """A copy of that run, and its last checkpoint."""
    shutil.copytree(cut_short, world.root / "run")
    return world, options(), world.root / "run" / "train" / "checkpoints" / "step-8"


def rehash(checkpoint: Path) -> None:
    (checkpoint / "manifest.json").unlink()
    write_json(checkpoint / "manifest.json", {"sha256": sha256_tree(checkpoint)})


@pytest.mark.parametrize("manifest", [None, [], {"sha256": 5}, {"sha256": {"state.json": 1}}])
def test_a_manifest_that_is_none(
    finished: tuple[World, DistillConfig, Path], manifest: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    world, config, checkpoint = finished
    write_json(checkpoint / "manifest.json", manifest)
    assert world.run("run", config).steps == 8
    said = " ".join(capsys.readouterr().err.split())
    assert f"Skipping the checkpoint {checkpoint}" in said
    assert "6 of 8 steps are done" in said


@pytest.mark.parametrize("state", [None, [], {"step": 7}])
def test_a_state_of_something_else_is_passed_over(
    finished: tuple[World, DistillConfig, Path], state: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    world, config, checkpoint = finished
    write_json(checkpoint / "state.json", state)
    rehash(checkpoint)
    assert world.run("run", config).steps == 8
    assert "6 of 8 steps are done" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("key", ["config", "inputs", "position", "seconds"])
def test_a_state_of_another_version_is_refused(finished: tuple[World, DistillConfig, Path], key: str) -> None:
    world, config, checkpoint = finished
    state = read_json(checkpoint / "state.json")
    for changed in ({**state, key: None}, {name: value for name, value in state.items() if name != key}):
        write_json(checkpoint / "state.json", changed)
        rehash(checkpoint)
        with pytest.raises(InputError, match=rf"step-8.state\.json is not as this version writes it .*{key}"):
            world.run("run", config)


@pytest.mark.parametrize("line", [b"\x80\n", b"[1]\n", b"{}\n", b'{"step": null}\n'])
def test_a_line_of_the_log_that_is_none(finished: tuple[World, DistillConfig, Path], line: bytes) -> None:
    """The rows before it stay, those after it are of the log that broke there."""
    world, config, _ = finished
    log = world.root / "run" / "train" / "metrics.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join([*lines[:3], line, *lines[3:]]))
    world.run("run", config)
    kept = [json.loads(row) for row in log.read_text().splitlines()]
    assert kept[:3] == [json.loads(row) for row in lines[:3]]


def test_a_checkpoint_beside_a_broken_one_is_still_rotated(finished: tuple[World, DistillConfig, Path]) -> None:
    world, config, last = finished
    folder = last.parent
    write_json(folder / "step-6" / "state.json", None)
    write_json(folder / "step-8" / "manifest.json", None)
    assert world.run("run", config).steps == 8
    assert (folder / "step-8" / "model.safetensors").is_file()
