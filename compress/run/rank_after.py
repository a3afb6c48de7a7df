"""Choosing a cut by what it becomes: criteria and controls propose cuts, each is healed a little, the best goes on.

Whatever is finished is kept on disk under the hash of what it was made from, so a ranking that was cut goes on with
what is there, and one that is asked for again with more candidates measures only those. Under a launcher all processes
heal together; the main one does the rest.
"""

import contextlib
import dataclasses
import functools
import json
import math
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from compress.base.config import to_dict
from compress.base.currency import as_before, decisive
from compress.base.disk import owned, read_json, read_rows, require_free, sha256_json, write_json
from compress.base.errors import InputError, UsageError
from compress.base.processes import on_main
from compress.base.progress import say
from compress.data import INDEX, TokenStore, prepare
from compress.distill import DistillConfig, distill
from compress.distill.loop.guard import Diverged
from compress.model.files import model_fingerprint, resolve_model
from compress.prune import (
    Chosen,
    Planned,
    PruneConfig,
    PruneResult,
    RankAfterConfig,
    Ranking,
    RankingConfig,
    measure_layers,
    prune,
    prune_inputs,
    prune_settings,
)
from compress.prune.choose.spec import format_layers
from compress.prune.plan import Derivation, derive
from compress.prune.repair import seams
from compress.run.recipe import PruneOptions

Cut = tuple[int, ...]
"""The layers that stay."""

_FEW_STEPS = 100


def with_heal(choice: RankAfterConfig, healing: DistillConfig, data: Path) -> RankAfterConfig:
    """A ranking with the token store and those options of its heals that touch the result."""
    heal = decisive(DistillConfig, to_dict(short_heal(healing, choice.rank_after)))
    return dataclasses.replace(choice, data=str(data), heal=heal)


def short_heal(healing: DistillConfig, tokens: int) -> DistillConfig:
    """How a candidate is healed: as the student will be, on fewer tokens, and measured and saved at its end only."""
    return dataclasses.replace(
        healing, tokens=tokens, heldout_every=0, checkpoint_every=0, keep_checkpoints=1, trackers=()
    )


def prune_ranked(options: PruneOptions, *, teacher: str, out: Path) -> PruneResult:
    """`compress prune --rank-after`: prepare the text in OUT.ranking (or take a token store as it is), heal every
    candidate there, and write the best cut to OUT. OUT.ranking is removed then; called again before, it goes on.

    Raises:
        UsageError: no text is named, it has no held-out rows, or `out` is not free; and as `prune`, `prepare` and
            `distill` do.
    """
    text, asked, choice = options.data, options.prune, options.prune.choice
    work = out.with_name(f"{out.name}.ranking")
    assert isinstance(choice, RankAfterConfig)
    tokens = choice.rank_after
    if text is None:
        raise UsageError(
            "Candidates are measured and healed on text: name it with --calibration SOURCE: hub:ORG/NAME[:CONFIG], a "
            "local file, folder or glob, or a token store."
        )
    with contextlib.ExitStack() as lock:
        on_main(lambda: require_free(out))
        on_main(lambda: lock.enter_context(owned(work)))

        def store() -> Path:
            if (Path(text.dataset) / INDEX).is_file():
                return Path(text.dataset)
            wanted = dataclasses.replace(text, tokens=text.tokens or tokens)
            prepare(wanted, resolve_model(teacher), work / "data")
            return work / "data"

        data = on_main(store)
        asked = dataclasses.replace(asked, calibration=str(data))
        choice = with_heal(dataclasses.replace(choice, calibration=str(data)), options.distill, data)
        result = prune_best(asked, choice, options.distill, teacher=teacher, out=out, work=work)
        on_main(lambda: shutil.rmtree(work))
    return result


def prune_best(
    asked: PruneConfig, choice: RankAfterConfig, healing: DistillConfig, *, teacher: str, out: Path, work: Path
) -> PruneResult:
    """Rank the candidates in `work`, by all processes together, and prune the best of them into `out`."""
    ranking = rank_cuts(asked, choice, healing, teacher=teacher, work=work)
    return on_main(lambda: prune(teacher, out, Chosen(asked=choice, ranking=ranking), **asked.how))


def rank_cuts(
    asked: PruneConfig, choice: RankAfterConfig, healing: DistillConfig, *, teacher: str, work: Path
) -> Ranking:
    """Let criteria and controls propose cuts, heal each distinct one on the same rows in the same order, and choose
    the one of least loss on the same held-out rows.

    Raises:
        UsageError: the token store has no held-out rows, or fewer training rows than `rank_after` asks for; or no
            candidate can be cut, and repaired where that was asked for.
    """
    started = time.monotonic()
    folder, data = on_main(lambda: resolve_model(teacher)), Path(str(choice.data))
    _check_heal(choice, healing, data)
    reads = prune_inputs(lambda: model_fingerprint(folder), choice, asked.repairing)
    memory = Memory(work, on_main(lambda: {role: find() for role, find in reads.items()}))
    types = on_main(lambda: derive(teacher, folder, choice).layer_types)

    plans: dict[Cut, Derivation] = {}  # of the main process, which alone cuts

    def refusal(kept: Cut) -> str | None:
        if asked.repair and not seams(kept, len(types)):
            return "it drops only layers before the first that stays, so there is nothing to repair."
        try:
            plans[kept] = derive(teacher, folder, format_layers(kept))
        except InputError as error:
            return str(error)
        return None

    def measure(how: RankingConfig) -> dict[str, Any]:
        found = on_main(lambda: measure_layers(teacher, folder, how))
        return {"kept_layers": found.kept_layers, "scores": found.scores, **found.details}

    def settings(kept: Cut) -> dict[str, Any]:
        patience = {"max_skipped_steps": healing.max_skipped_steps}  # which decides whether a heal has diverged
        return prune_settings(format_layers(kept), **asked.how) | {"heal": choice.heal | patience}

    def heal(kept: Cut, place: Path) -> None:
        start = place / "start"

        def cut() -> None:
            if not start.is_dir():
                planned = Planned(keep=format_layers(kept), derivation=plans[kept])
                prune(folder, start, planned, **asked.how)

        on_main(cut)
        config = short_heal(healing, choice.rank_after)
        distill(config, student=start, teacher=folder, data=data, out=place / "student", work=place / "train")

    proposals, measured = propose(choice, types, memory, measure)
    candidates = possible(gather(proposals), refusal)
    healed = heal_all(candidates, memory, settings, heal)
    details = {
        "rank_after_tokens": choice.rank_after,
        "compared_by": compared_by(healed),
        "candidates": healed,
        "criteria": measured,
        "seconds": round(time.monotonic() - started, 3),
    }
    best = tuple(healed[0]["kept_layers"])
    return Ranking(method="rank-after", kept_layers=best, scores=(), details=details)


def _check_heal(choice: RankAfterConfig, healing: DistillConfig, data: Path) -> None:
    """Refuse a heal that nothing would be measured after, and say when it is too short to settle the order."""
    if not min(healing.heldout_sequences, TokenStore.open(data).num_heldout):
        raise UsageError(
            f"Candidates are compared on held-out rows, and of {data} none are to be read: set data.heldout_sequences "
            "and distill.heldout_sequences above 0."
        )
    if (steps := choice.rank_after // healing.batch_tokens) < _FEW_STEPS:
        say(
            f"Each candidate is healed for {steps} steps only, and the order of cuts settles in some hundred: give it "
            "more tokens (prune.rank_after), or smaller steps (distill.batch_tokens)."
        )


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A cut and the names of those that proposed it."""

    kept_layers: Cut
    proposed_by: tuple[str, ...]


def gather(proposals: Iterable[tuple[str, Cut]]) -> list[Candidate]:
    """The distinct cuts, in the order in which they were first proposed."""
    names: dict[Cut, list[str]] = {}
    for name, kept in proposals:
        names.setdefault(kept, []).append(name)
    return [Candidate(kept, tuple(dict.fromkeys(found))) for kept, found in names.items()]


def possible(candidates: Sequence[Candidate], refusal: Callable[[Cut], str | None]) -> list[Candidate]:
    """Those candidates that `refusal` gives no reason against; the others are named with it, and left out.

    Raises:
        UsageError: none is left.
    """
    found = []
    for candidate in candidates:
        kept = candidate.kept_layers
        if (reason := on_main(functools.partial(refusal, kept))) is None:
            found.append(candidate)
            continue
        say(f"Layers {format_layers(kept)} ({', '.join(candidate.proposed_by)}) are no candidate: {reason}")
    if not found:
        raise UsageError("No candidate can be cut as asked (the reasons are above); name others (prune.candidates).")
    return found


@dataclasses.dataclass(frozen=True)
class Memory:
    """Results of earlier calls in a folder; all processes ask together, and the main one reads and writes."""

    folder: Path
    inputs: Mapping[str, Any]
    """Fingerprints of what every result is made from."""

    def place(self, what: Any) -> Path:
        """A path that belongs to the result of `what`, options of a PruneConfig and how a cut is healed."""
        return self.folder / sha256_json([as_before(PruneConfig, what), self.inputs])[:20]

    def recall(self, what: Any, make: Callable[[], Any]) -> Any:
        """What `make` returned for `what`, now or earlier, as it reads back from JSON."""
        path = self.place(what).with_suffix(".json")
        known = on_main(lambda: read_json(path)["result"] if path.is_file() else None)
        if known is None:
            known = json.loads(json.dumps(make()))
            on_main(lambda: write_json(path, {"of": what, "inputs": self.inputs, "result": known}))
        return known


def propose(
    choice: RankAfterConfig, types: Sequence[str], memory: Memory, measure: Callable[[RankingConfig], dict[str, Any]]
) -> tuple[list[tuple[str, Cut]], dict[str, Any]]:
    """The cuts that are proposed, by name, and what `measure` found for those names that are measures."""
    proposals, measured = [], {}
    for name, how in choice.proposals(types):
        if isinstance(how, RankingConfig):
            found = memory.recall(prune_settings(how, check=False), functools.partial(measure, how))
            measured[f"{name}, seed {how.seed}" if name == "random" else name] = found
            how = tuple(found["kept_layers"])
        proposals.append((name, how))
    return proposals, measured


def heal_all(
    candidates: Sequence[Candidate],
    memory: Memory,
    settings: Callable[[Cut], Mapping[str, Any]],
    heal: Callable[[Cut, Path], None],
) -> list[dict[str, Any]]:
    """Heal each candidate; a record of each, the best first: the least of `compared_by`, of equal ones the first named.

    `settings` is what decides how a cut is healed, and `heal` heals it in a folder, its metrics in train/metrics.jsonl.
    A record has the held-out losses `before` and `after`: KL(teacher || student) at temperature 1 (`kl`), what healing
    minimises (`loss`), its `soft` and `hard` part, nats a token; those `after` are null where the heal diverged.

    Raises:
        InputError: no candidate has a finite loss after its heal.
    """
    records = []
    for number, candidate in enumerate(candidates, start=1):
        kept, what = candidate.kept_layers, settings(candidate.kept_layers)
        place, name = memory.place(what), f"ranking {number} of {len(candidates)}"
        say(f"{name}: layers {', '.join(map(str, kept))} ({', '.join(candidate.proposed_by)})")

        def losses(kept: Cut = kept, place: Path = place) -> dict[str, Any]:
            try:
                heal(kept, place)
            except Diverged as error:
                say(f"Layers {format_layers(kept)} are out: {error}")
                return on_main(lambda: heldout_losses(place / "train" / "metrics.jsonl", diverged=True))
            return on_main(lambda: heldout_losses(place / "train" / "metrics.jsonl"))

        found = memory.recall(what, losses)
        on_main(lambda place=place: shutil.rmtree(place, ignore_errors=True))  # type: ignore[misc]
        records.append({"kept_layers": kept, "proposed_by": candidate.proposed_by, **found})
        measure = compared_by(records[-1:])
        say(f"{name}: held-out {measure} {_shown(found['before'].get(measure))} -> {_shown(found['after'][measure])}")
    measure = compared_by(records)
    records.sort(key=lambda record: _finite(record["after"][measure]))
    if not records or math.isinf(_finite(records[0]["after"][measure])):
        raise InputError(
            "No candidate cut has a finite held-out loss after its heal (the losses are above). Lower distill.lr, or "
            "check the teacher."
        )
    return records


def compared_by(records: Sequence[Mapping[str, Any]]) -> str:
    """`kl`, which does not depend on how candidates are healed; `loss`, what healing minimises, where some were healed
    before the other was measured."""
    healed = [record["after"] for record in records if record["after"]["loss"] is not None]
    return "kl" if all(after.get("kl") is not None for after in healed) else "loss"


def heldout_losses(metrics: Path, *, diverged: bool = False) -> dict[str, dict[str, float | None]]:
    """The first and the last held-out losses of a metrics.jsonl; null for the last of a training that diverged."""
    rows = [row for row in read_rows(metrics) if "heldout_loss" in row]
    before, after = (
        {name: row.get(f"heldout_{name}") for name in ("kl", "loss", "soft", "hard")} for row in (rows[0], rows[-1])
    )
    return {"before": before, "after": dict.fromkeys(after) if diverged else after}


def _finite(loss: float | None) -> float:
    return loss if loss is not None and math.isfinite(loss) else math.inf


def _shown(loss: float | None) -> str:
    return "not finite" if math.isinf(_finite(loss)) else f"{loss:.4f}"
