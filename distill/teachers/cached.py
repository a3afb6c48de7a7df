"""A teacher that is not run: its signals come from a cache."""

import torch

from compress.base.errors import Faults, UsageError
from compress.base.machine import default_device
from compress.distill.config import DistillConfig, divergence_of
from compress.distill.objective.signals import Needs, Signals, first_ids
from compress.distill.objective.sparse import Sparse
from compress.distill.resources.auto import resolve_precision
from compress.distill.rows.batch import MicroBatch
from compress.distill.teachers.cache import TeacherCache


class CachedTeacher:
    """What a cache has of a micro-batch's rows, by their numbers; a `TeacherSource`."""

    def __init__(self, cache: TeacherCache, device: torch.device, vocabulary: int) -> None:
        self._cache, self._device = cache, device
        self._head = first_ids(cache.head().to(device), vocabulary)

    def ahead(self, batch: MicroBatch) -> MicroBatch:
        """Has the system read what will be asked for."""
        self._cache.will_need(batch.row_ids)
        return batch

    def __call__(self, batch: MicroBatch) -> Signals:
        """Last hidden states with the head that makes logits of them, or what is known of the distribution."""
        if self._cache.is_sparse(batch.row_ids):
            found = self._cache.sparse(batch.row_ids)
            ids, weights = (batch.with_label(part.to(self._device)) for part in found[:2])
            target = Sparse(ids, weights, batch.with_label(found.entropy[..., None].to(self._device)).squeeze(-1))
            return Signals(weights.new_empty(len(ids), 0), self._head, {}, target)
        states = self._cache.states(batch.row_ids).to(self._device)
        return Signals(hidden=batch.with_label(states), head=self._head, blocks={})


def check_objective(config: DistillConfig, needs: Needs, kind: str) -> None:
    """Refuse an objective that asks for what a kind of cache does not have.

    Raises:
        UsageError: it does.
    """
    if kind != "hidden":
        for name, fits, only in (
            ("divergence", divergence_of(config.divergence).name == "forward_kl", "forward_kl"),
            ("temperature", config.temperature == 1.0, "1"),
            ("self_correct", config.self_correct is None, "null"),
        ):
            if not fits:
                raise UsageError(
                    f"A teacher's cache of kind {kind} is for distill.{name}: {only} alone, as it does not have the "
                    "whole distribution: change it, or use kind: hidden, which serves all."
                )
    if needs.teacher_blocks:
        terms = [name for name in ("hidden", "similarity") if config.weights and getattr(config.weights, name)]
        raise UsageError(
            f"weights.{terms[0]} compares with outputs of the teacher's blocks, which its cache does not have: leave "
            "the term out, or train without a cache."
        )


def check_vocabulary(cache: TeacherCache, vocabulary: int) -> None:
    """Refuse token ids of the teacher that the student does not have, where they cannot be taken out any more.

    Raises:
        UsageError: the two share `vocabulary` ids, and the cache has others.
    """
    if cache.kind != "hidden" and cache.vocabulary != vocabulary:
        raise UsageError(
            f"The cache {cache.path} has a distribution over {cache.vocabulary} token ids, of which the student has "
            f"{vocabulary}: use one of kind: hidden."
        )


def check_cache(
    cache: TeacherCache, config: DistillConfig, *, teacher: str | None, data: str | None, apart: bool
) -> None:
    """Refuse a cache that is not of this teacher, this text, or the way that a training would run the teacher.

    `teacher` and `data` are fingerprints; None where they are not known yet.

    Raises:
        UsageError: all that differs, and what to do.
    """
    faults = Faults()

    def require(same: bool, what: str, remedy: str) -> None:
        if not same:
            faults.found.append(UsageError(f"The cache {cache.path} is {what}: {remedy}."))

    anew = "make one with `compress cache`, or train without"
    require(teacher in (None, cache.inputs["teacher"]), "of another teacher", anew)
    require(data in (None, cache.inputs["data"]), "of another text", anew)
    for name, made, asked in (
        ("precision", cache.precision, resolve_precision(config, default_device())),
        ("teacher_precision", cache.index["teacher_precision"], config.teacher_precision),
        ("documents kept apart", cache.index["apart"], apart),
    ):
        require(made == asked, f"of a teacher run with {name} = {made}, and the training asks for {asked}", anew)
    faults.refuse()
