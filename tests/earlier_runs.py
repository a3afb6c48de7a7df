"""Run folders that version 092ab7b wrote (see fixtures/runs_092ab7b/make.py), unpacked to be gone on with."""

import tarfile
from pathlib import Path

from helpers import ROOT

ARCHIVES = ROOT / "tests" / "fixtures" / "runs_092ab7b"


def unpack(name: str, to: Path) -> Path:
    """The folder of an archive: `recipe.yaml`, what it names, and `run/`."""
    with tarfile.open(ARCHIVES / f"{name}.tar.xz") as archive:
        archive.extractall(to, filter="data")
    return to / name


def content(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
