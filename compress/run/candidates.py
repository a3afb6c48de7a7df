"""Candidate cuts: proposed by criteria and controls, healed alike, the best first.

What is finished is kept on disk under the hash of what it was made from. All processes of a launch ask together.
"""

import dataclasses
import functools
import json
import math
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from compress.base.currency import as_before
from compress.base.disk import read_json, read_rows, sha256_json, write_json
from compress.base.errors import InputError, UsageError
from compress.base.processes import on_main
from compress.base.progress import say
from compress.distill.loop.guard import Diverged
from compress.prune import PruneConfig, RankAfterConfig, RankingConfig, prune_settings
from compress.prune.choose.spec import format_layers

Cut = tuple[int, ...]
"""The layers that stay."""
_TITLES = {"kl": "held-out KL", "loss": "held-out loss", "error": "share of answers that are wrong"}


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
class Results:
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
    choice: RankAfterConfig, types: Sequence[str], results: Results, measure: Callable[[RankingConfig], dict[str, Any]]
) -> tuple[list[tuple[str, Cut]], dict[str, Any]]:
    """The cuts that are proposed, by name, and what `measure` found for those names that are measures."""
    proposals, measured = [], {}
    for name, how in choice.proposals(types):
        if isinstance(how, RankingConfig):
            found = results.recall(prune_settings(how, check=False), functools.partial(measure, how))
            measured[f"{name}, seed {how.seed}" if name == "random" else name] = found
            how = tuple(found["kept_layers"])
        proposals.append((name, how))
    return proposals, measured


def heal_all(
    candidates: Sequence[Candidate],
    results: Results,
    settings: Callable[[Cut], Mapping[str, Any]],
    heal: Callable[[Cut, Path], dict[str, Any]],
) -> list[dict[str, Any]]:
    """Heal each candidate; a record of each, the best first: the least of `compared_by`, of equal ones the first named.

    `settings` is what decides how a cut is healed, and `heal` heals it in a folder, its metrics in train/metrics.jsonl,
    and measures what it comes to besides.
    A record has the held-out losses `before` and `after`: KL(teacher || student) at temperature 1 (`kl`), what healing
    minimises (`loss`), its `soft` and `hard` part, nats a token; those `after` are null where the heal diverged. What
    `heal` measures is `after` it too: `error`, 1 - the mean score, where candidates are compared by tasks.

    Raises:
        InputError: no candidate has a finite loss after its heal.
    """
    records = []
    for number, candidate in enumerate(candidates, start=1):
        kept, what = candidate.kept_layers, settings(candidate.kept_layers)
        place, name = results.place(what), f"ranking {number} of {len(candidates)}"
        say(f"{name}: layers {', '.join(map(str, kept))} ({', '.join(candidate.proposed_by)})")

        def losses(kept: Cut = kept, place: Path = place) -> dict[str, dict[str, Any]]:
            try:
                besides = heal(kept, place)
            except Diverged as error:
                say(f"Layers {format_layers(kept)} are out: {error}")
                return on_main(lambda: heldout_losses(place / "train" / "metrics.jsonl", diverged=True))
            found = on_main(lambda: heldout_losses(place / "train" / "metrics.jsonl"))
            return {**found, "after": {**found["after"], **besides}}

        found = results.recall(what, losses)
        on_main(lambda place=place: shutil.rmtree(place, ignore_errors=True))  # type: ignore[misc]
        records.append({"kept_layers": kept, "proposed_by": candidate.proposed_by, **found})
        measure = compared_by(records[-1:])
        before = "" if measure == "error" else f"{_shown(found['before'].get(measure))} -> "
        say(f"{name}: {_TITLES[measure]} {before}{_shown(found['after'].get(measure))}")
    measure = compared_by(records)
    records.sort(key=lambda record: _finite(record["after"].get(measure)))
    if not records or math.isinf(_finite(records[0]["after"].get(measure))):
        raise InputError(
            "No candidate cut has a finite held-out loss after its heal (the losses are above). Lower distill.lr, or "
            "check the teacher."
        )
    return records


def compared_by(records: Sequence[Mapping[str, Any]]) -> str:
    """`error` where tasks were scored; else `kl`, which does not depend on how candidates are healed; `loss`, what
    healing minimises, where some were healed before that was measured."""
    if any(record["after"].get("error") is not None for record in records):
        return "error"
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
