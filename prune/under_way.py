"""The weights of a call's students while they are copied: started from a guess, and again where the guess was wrong."""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from compress.base.disk import clear_folder, read_json
from compress.base.errors import CompressError
from compress.prune.choose.spec import PATTERN, parse_spec
from compress.prune.experts.weights import with_experts
from compress.prune.student import Call, Keep, Student
from compress.weights.casting import student_tensors
from compress.weights.copying import Copying
from compress.weights.headers import likely_prefixes, select_tensors
from compress.weights.room import require_space
from compress.weights.shards import StudentTensor

_Tensors = list[list[StudentTensor]]


class WeightsUnderWay:
    """The copy into the folders `staged`, one a student. As a context it stops what is not finished."""

    def __init__(self, call: Call, staged: Sequence[Path]) -> None:
        self._call, self._staged = call, staged
        self._tensors: _Tensors | None = None
        self._copying: Copying | None = None

    def start_early(self, keeps: Sequence[Keep]) -> None:
        """Start with the tensors that headers and config.json let one expect; not where they do not."""
        if self._call.hub is not None or self._call.experts is not None:
            return  # a wrong guess would cost bytes of the network; which experts stay is measured
        try:
            tensors = self._expected(keeps)
        except CompressError:  # the plan says it better
            return
        if tensors is not None:
            self._start(tensors)

    def start(self, students: Sequence[Student]) -> None:
        """Copy what the plans say, from the beginning unless it is under way already."""
        tensors = list(map(self._of_student, students))
        if tensors != self._tensors:
            self._stop()
            for folder in self._staged:
                clear_folder(folder)
            self._start(tensors)

    def finish(self) -> list[dict[str, str]]:
        """Wait for the end; SHA-256 by file name, for each student."""
        assert self._copying is not None
        return self._copying.finish()

    def __enter__(self) -> "WeightsUnderWay":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop()

    def _expected(self, keeps: Sequence[Keep]) -> _Tensors | None:
        config = read_json(self._call.folder / "config.json")
        if not isinstance(config, dict):
            return None
        prefixes = likely_prefixes(self._call.files, config)
        if prefixes is None:
            return None
        found: _Tensors = []
        for keep in keeps:
            if not isinstance(keep, str) or keep.startswith(PATTERN):
                return None
            num_layers = config["num_hidden_layers"]
            found.append(self._select(prefixes, parse_spec(keep, num_layers), num_layers))
        return found

    def _of_student(self, student: Student) -> list[StudentTensor]:
        derivation, experts = student.derivation, student.experts
        prefixes, plan = derivation.layer_prefixes, derivation.plan
        tensors = self._select(prefixes, plan.kept_layers, plan.num_layers)
        if experts is None:
            return tensors
        return with_experts(tensors, prefixes, experts.of_layers(plan.kept_layers), experts.before)

    def _select(self, prefixes: Sequence[str], kept: Sequence[int], num_layers: int) -> list[StudentTensor]:
        named = select_tensors(self._call.files, prefixes, kept, num_layers)
        return student_tensors(named, self._call.storage.cast, kept, num_layers)

    def _start(self, tensors: _Tensors) -> None:
        needed = sum(tensor.num_bytes for student in tensors for tensor in student)
        require_space(self._staged[0], needed)
        storage = self._call.storage
        self._tensors = tensors
        self._copying = Copying(
            list(zip(self._staged, tensors, strict=True)),
            self._call.hub,
            max_shard_bytes=storage.max_shard_size,
            link=storage.link,
        )

    def _stop(self) -> None:
        if self._copying is not None:
            self._copying.stop()
