"""A run folder as `verify` sees it: its recipe, its models, its text, and where the steps' inputs are."""

import functools
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

from compress.base.currency import Missing
from compress.base.errors import CompressError
from compress.data import INDEX, TokenStore
from compress.data.store.blend import part_folder
from compress.distill.publish import RECORD
from compress.model.files import local_model
from compress.report.run_files import MODELS
from compress.run.finders import store_in
from compress.run.layout import BRANCHES
from compress.run.pipeline import resolve_paths
from compress.run.recipe import Recipe, load_recipe
from compress.verify.records import read_record


class RunFolder:
    """A run folder of `compress run` (which has recipe.yaml) or `compress distill`.

    `data` names the token store of a run that used one outside of its folder.
    """

    def __init__(self, path: Path, data: Path | None) -> None:
        self.path = path
        self.data = data or path / "data"

    @property
    def has_recipe(self) -> bool:
        """Whether `compress run` made it."""
        return (self.path / "recipe.yaml").is_file()

    @cached_property
    def recipe(self) -> Recipe | None:
        """The recipe as written, with `$RUN` in it; None where there is none that can be read."""
        try:
            return load_recipe(self.path / "recipe.yaml")
        except CompressError:
            return None

    @cached_property
    def resolved(self) -> Recipe | None:
        """The recipe with its paths."""
        return None if self.recipe is None else resolve_paths(self.recipe, self.path)

    @cached_property
    def store(self) -> TokenStore:
        """The run's token store.

        Raises:
            Missing: it is not there.
            InputError: it is damaged.
        """
        if not (self.data / INDEX).is_file():
            raise Missing(f"{self.data} holds no token store; name the run's with --data")
        return TokenStore.open(self.data)

    def store_of(self, out: Path) -> TokenStore:
        """The token store that the training of `out` read: of a branch, that of its source; raises as `store`."""
        branch = out.parent
        if branch.parent != self.path / BRANCHES:
            return self.store
        return store_in(part_folder(self.data, int(branch.name)))

    @property
    def trained_teacher(self) -> bool:
        """Whether the teacher was trained here, from scratch or from a given one."""
        return (self.path / "teacher-init").is_dir() or (self.path / "teacher" / RECORD).is_file()

    def teacher(self) -> Path:
        """Folder of the teacher.

        Raises:
            Missing: it is not on this machine, or the run does not say which it is.
        """
        if self.trained_teacher:
            return self._model("teacher")
        if self.resolved is not None and self.resolved.trim is not None:
            return self._model("teacher-trimmed")
        if self.resolved is not None:
            return local_model(str(self.resolved.teacher.model), self.resolved.teacher.revision)
        for name in (f"student/{RECORD}", "student-init/prune.json"):
            if (self.path / name).is_file():
                return local_model(str(read_record(self.path / name).data.get("teacher")), None)
        raise Missing("the run does not say which teacher it had")

    def start_of(self, out: Path) -> Path:
        """Folder of the model that the training of `out` began with; raises as `teacher`."""
        inside = f"{out.name}-init"
        if self.has_recipe or out.name == "teacher":
            return self._model(inside)
        name = read_record(out / RECORD).data.get("student")
        folder = Path(str(name)).expanduser()
        if not folder.is_dir() and folder.name == inside and (self.path / inside).is_dir():
            return self.path / inside
        return local_model(str(name), None)

    def cache_of(self, out: Path) -> Path | None:
        """Folder of the cache that the training of `out` says it read; None where it read none, or is not finished."""
        record = out / RECORD
        cache = read_record(record).data.get("cache") if record.is_file() else None
        return Path(cache["folder"]) if isinstance(cache, dict) and isinstance(cache.get("folder"), str) else None

    def others_of(self, out: Path) -> list[Callable[[], Path]]:
        """How to find the teachers beside the first that the training of `out` had; none while it is not finished."""
        record = out / RECORD
        mixture = read_record(record).config.get("mixture") if record.is_file() else None
        named = mixture.get("with", []) if isinstance(mixture, dict) else []
        return [functools.partial(local_model, str(each["model"]), each["revision"]) for each in named]

    def measured(self, stem: str) -> Path:
        """Folder of the model that eval/STEM.json is about; raises as `teacher`."""
        if stem == "teacher":
            return self.teacher()
        if stem in MODELS.values() and (self.path / stem).is_dir():
            return self._model(stem)
        return local_model(str(read_record(self.path / "eval" / f"{stem}.json").data.get("model")), None)

    def _model(self, name: str) -> Path:
        if not (self.path / name / "config.json").is_file():
            raise Missing(f"{self.path / name} is not there")
        return self.path / name
