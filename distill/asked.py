"""What a training is asked for, and what is known of it once it is checked."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from compress.base.config import build_from, to_dict
from compress.base.currency import Inputs, inputs_now
from compress.base.disk import sha256_json
from compress.base.machine import default_device
from compress.base.processes import count, on_main
from compress.data.alignment import Retelling
from compress.distill.config import DistillConfig
from compress.distill.fit import Planner, check_fit
from compress.distill.loop.ability import Ability, AbilityTest, until_of
from compress.distill.objective.objective import make_objective
from compress.distill.objective.part import Pair
from compress.distill.objective.signals import Needs
from compress.distill.plan import DistillPlan, plan_distill
from compress.distill.preflight import check_start
from compress.distill.resources.auto import resolve_precision
from compress.distill.resources.schedule import most_heldout_rows
from compress.distill.rows.scoring import selection_for
from compress.distill.rows.selection import Selection
from compress.distill.teachers.cache import TeacherCache
from compress.distill.teachers.cached import check_cache
from compress.distill.teachers.other_tokenizer import measure_alignment, retelling_of
from compress.distill.teachers.several import other_inputs, role_of
from compress.model.cuts import cuts_of, kept_layers
from compress.model.files import model_fingerprint
from compress.model.framing import Framing
from compress.model.load import load_config


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """What `distill` is asked for."""

    config: DistillConfig
    student: str | Path
    teacher: str | Path | None
    data: Path
    out: Path
    work: Path
    cache: Path | None = None
    ability: AbilityTest | None = None
    """What the student is scored on while it is trained."""


@dataclasses.dataclass(frozen=True)
class Checked:
    """A training that nothing was found to refuse."""

    asked: Training
    config: DistillConfig
    start: Path
    """Folder of the student that it begins with."""
    teacher: Path | None
    others: tuple[Path, ...]
    """The teachers of its mixture beside that."""
    retelling: Retelling | None
    """What gives the teacher its rows, where it has another tokenizer."""
    store: Any
    cache: TeacherCache | None
    inputs: dict[str, Any]

    @classmethod
    def of(cls, asked: Training) -> "Checked":
        """Raises as `distill`."""
        from compress.data import TokenStore, facts_of_store

        config = build_from(DistillConfig, to_dict(asked.config), "distill")
        store = TokenStore.open(asked.data)
        cache = None if asked.cache is None else TeacherCache.open(asked.cache)
        start, teacher, others = on_main(
            lambda: check_start(
                config,
                student=asked.student,
                teacher=asked.teacher,
                out=asked.out,
                text=facts_of_store(store),
                cached=None if cache is None else cache.kind,
            )
        )
        inputs = on_main(lambda: fingerprints(start, teacher, store, cache, others, until_of(asked.ability)))
        if cache is not None:
            apart = config.document_mask or store.apart
            check_cache(cache, config, teacher=inputs["teacher"], data=inputs["data"], apart=apart)
        retelling = retelling_of(config, start, teacher)
        return cls(asked, config, start, teacher, tuple(others), retelling, store, cache, inputs)

    @property
    def ability(self) -> Ability | None:
        """The scores of this training."""
        test = self.asked.ability
        if test is None:
            return None
        return Ability(test, self.asked.work, self.start, (self.store.framing or Framing()).rows)

    def score_teacher(self) -> None:
        """Score the teacher once, where the student will be scored."""
        if self.ability is not None and self.teacher is not None:
            own = None if self.retelling is None else self.retelling.framing.rows
            self.ability.score_teacher(self.teacher, self.ability.prefix if own is None else own)

    def check_framing(self) -> None:
        """That the text begins as the teacher reads it, unless the training has begun; raises as `distill`."""
        from compress.data import check_framing

        begun = any((self.asked.work / "checkpoints").glob("step-*"))
        if self.teacher is not None and self.retelling is None and not begun:
            for guide in (self.teacher, *self.others):
                check_framing(self.store, guide)

    def vocabulary(self) -> int:
        """Token ids of the student, padding included."""
        size: int = load_config(self.start).get_text_config().vocab_size
        return size

    def signal_bytes(self) -> int:
        """The most that a teacher says of one round's rows: of a step's, and of those that are held out."""
        if self.teacher is None:
            return 0
        tokens = max(self.config.batch_tokens, most_heldout_rows(self.config) * self.store.seq_len)
        value = 2 if resolve_precision(self.config, default_device()) == "bf16" else 4
        width: int = load_config(self.teacher).get_text_config().hidden_size
        size: int = tokens * width * value
        return size

    def selection(self) -> Selection | None:
        """Of the text, what is learned from."""
        return selection_for(self.config, self.store, student=self.start, teacher=self.teacher, inputs=self.inputs)

    def needs(self) -> Needs:
        """Which of the teacher's signals its objective asks for."""
        guide = None if self.teacher is None else load_config(self.teacher)
        kept = kept_layers(cuts_of(self.start), guide)
        return make_objective(self.config, Pair(load_config(self.start), guide, kept)).needs

    def plan(self) -> DistillPlan:
        """What it needs, checked against the device; raises as `distill`."""
        return check_fit(self.config, self.planner(), default_device())

    def planner(self) -> Planner:
        """What it needs with other options, unchecked."""
        guide = None if self.teacher is None else load_config(self.teacher)
        ratio = None if self.retelling is None else measure_alignment(self.retelling, self.store).teacher_tokens
        return functools.partial(
            plan_distill,
            student=load_config(self.start),
            teacher=guide,
            num_rows=self.store.num_rows,
            seq_len=self.store.seq_len,
            device=default_device(),
            processes=count(),
            kept=kept_layers(cuts_of(self.start), guide),
            cached=self.cache is not None,
            others=tuple(map(load_config, self.others)),
            teacher_tokens=ratio,
        )

    def mixture(self) -> dict[str, Any] | None:
        """Field `mixture` of distill.json."""
        mixture, teacher = self.config.mixture, str(self.asked.teacher)
        if mixture is None:
            return None
        names = {"teacher": teacher} | {role_of(number): other.model for number, other in enumerate(mixture.with_, 2)}
        taught = [{"model": name, "fingerprint": self.inputs[role]} for role, name in names.items()]
        return {"of": mixture.of, "teachers": taught, "shares": mixture.describe(teacher, self.store.sources)}


def fingerprints(
    student: Path,
    teacher: Path | None,
    store: Any,
    cache: TeacherCache | None = None,
    others: Sequence[Path] = (),
    until: Inputs = MappingProxyType({}),
) -> dict[str, str | None]:
    """One hash for each input; what a checkpoint and a finished student are checked against."""
    return {
        "student": sha256_json(model_fingerprint(student)),
        "teacher": None if teacher is None else sha256_json(model_fingerprint(teacher)),
        "data": store.fingerprint,
        "cache": None if cache is None else cache.fingerprint,
        **inputs_now({**other_inputs([functools.partial(Path, folder) for folder in others]), **until}),
    }
