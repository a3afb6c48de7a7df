"""Choosing a cut by what it becomes: criteria and controls propose cuts, each is healed a little, the best goes on.

Whatever is finished is kept on disk under the hash of what it was made from, so a ranking that was cut goes on with
what is there, and one that is asked for again with more candidates measures only those. Under a launcher all processes
heal together; the main one does the rest.
"""

import contextlib
import dataclasses
import functools
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from compress.base.config import to_dict
from compress.base.currency import decisive
from compress.base.disk import owned
from compress.base.errors import Faults, InputError, UsageError
from compress.base.outputs import UNFINISHED, Output, beside, check_outputs, has_only
from compress.base.processes import on_main
from compress.base.progress import say
from compress.data import (
    DataConfig,
    TextFacts,
    TokenStore,
    check_data,
    facts_of_plan,
    facts_of_store,
    fit_rows,
    named_store,
    prepare,
    require_apart,
    store_outputs,
)
from compress.distill import DistillConfig, distill
from compress.distill.preflight import check_distill
from compress.distill.resources.schedule import most_heldout_rows
from compress.evaluate import AbilityTest, EvalConfig
from compress.model.facts import ModelFacts, look_at_config, look_at_model
from compress.model.files import model_fingerprint, resolve_model
from compress.model.framing import Framing
from compress.prune import (
    Chosen,
    Planned,
    PruneConfig,
    PrunePlan,
    PruneResult,
    RankAfterConfig,
    Ranking,
    RankingConfig,
    check_prune,
    measure_layers,
    prune,
    prune_inputs,
    prune_settings,
    student_facts,
    student_output,
)
from compress.prune.choose.spec import format_layers
from compress.prune.plan import Derivation, derive
from compress.prune.repair import seams
from compress.report.judge.ability import mean_and_error
from compress.run.candidates import Cut, Results, compared_by, gather, heal_all, possible, propose
from compress.run.options import PruneOptions

_FEW_STEPS = 100


def with_heal(choice: RankAfterConfig, healing: DistillConfig, data: Path, scoring: EvalConfig) -> RankAfterConfig:
    """A ranking with the token store and those options of its heals and its scores that touch the result."""
    heal, test = decisive(DistillConfig, to_dict(short_heal(healing, choice.rank_after))), task_test(choice, scoring)
    return dataclasses.replace(choice, data=str(data), heal=heal if test is None else {**heal, "scored_by": test.key})


def task_scoring(choice: RankAfterConfig, scoring: EvalConfig) -> EvalConfig | None:
    """How healed candidates are scored; None where they are compared by their nearness to the teacher."""
    if choice.rank_tasks is None:
        return None
    return dataclasses.replace(scoring, tasks=list(choice.rank_tasks), limit=choice.rank_items, other_text=None)


def task_test(choice: RankAfterConfig, scoring: EvalConfig) -> AbilityTest | None:
    """What scores healed candidates so."""
    asked = task_scoring(choice, scoring)
    return None if asked is None else AbilityTest(asked, every=0)


def short_heal(healing: DistillConfig, tokens: int) -> DistillConfig:
    """How a candidate is healed: as the student will be, on fewer tokens as they come, by the run's teacher alone, and
    measured and saved at its end only."""
    return dataclasses.replace(
        healing,
        tokens=tokens,
        mixture=None,
        select=None,
        order="random",
        on_policy=None,
        heldout_every=0,
        heldout_sequences=most_heldout_rows(healing),
        checkpoint_every=0,
        keep_checkpoints=1,
        trackers=(),
    )


def prune_ranked(options: PruneOptions, *, teacher: str, out: Path) -> PruneResult:
    """`compress prune --rank-after`: prepare the text in OUT.ranking (or take a token store as it is), heal every
    candidate there, and write the best cut to OUT. OUT.ranking is removed then; called again before, it goes on.

    Raises:
        UsageError: no text is named, it has no held-out rows, or `out` is not free; and as `prune`, `prepare` and
            `distill` do.
    """
    asked, choice, text = options.prune, options.prune.choice, _healed_on(options, teacher)
    work = _ranking_of(out)
    assert isinstance(choice, RankAfterConfig)
    with contextlib.ExitStack() as lock:
        on_main(lambda: plan_ranked(options, teacher=teacher, out=out)[1].refuse())
        on_main(lambda: lock.enter_context(owned(work)))

        def store() -> Path:
            if (named := named_store(text)) is not None:
                return named
            prepare(text, resolve_model(teacher), work / "data")
            return work / "data"

        data = on_main(store)
        asked = dataclasses.replace(asked, calibration=str(data))
        choice = with_heal(dataclasses.replace(choice, calibration=str(data)), options.distill, data, options.eval)
        result = prune_best(asked, choice, options.distill, options.eval, teacher=teacher, out=out, work=work)
        on_main(lambda: shutil.rmtree(work))
    return result


def plan_ranked(options: PruneOptions, *, teacher: str, out: Path) -> tuple[PrunePlan | None, Faults]:
    """The plan of `prune_ranked`, if there is one, and all that would refuse it."""
    faults, choice = Faults(), options.prune.choice
    assert isinstance(choice, RankAfterConfig)
    work = _ranking_of(out)
    check_outputs([student_output(out), ranking_output(work), *store_outputs(work / "data")], faults)
    known, text = look_at_model(teacher, faults), faults.of(lambda: _healed_on(options, teacher))
    facts = None if text is None else _facts_of(text, known, out, faults)
    cut = None if known is None else check_prune(choice, known, faults, **options.prune.how)
    student = student_facts(cut, known)
    if text is not None:
        for name in text.datasets:
            faults.of(functools.partial(require_apart, name, work))
    if facts is not None and text is not None:
        check_ranking(options.distill, choice, ", ".join(text.datasets), (student, known), facts, faults)
    if (scoring := task_scoring(choice, options.eval)) is not None:
        from compress.evaluate.harness.catalog import check_tasks

        faults.of(lambda: check_tasks(scoring, download=False))
    return None if cut is None else cut.plan, faults


def check_ranking(
    healing: DistillConfig,
    choice: RankAfterConfig,
    dataset: str,
    models: tuple[ModelFacts | None, ModelFacts | None],
    text: TextFacts,
    faults: Faults,
) -> None:
    """Find what would refuse the heal of a candidate: of the first of the `models` by the second."""
    heal = short_heal(healing, choice.rank_after)
    faults.of(lambda: _check_heal(heal, text.num_heldout, dataset))
    check_distill(heal, student=models[0], teacher=models[1], text=text, faults=faults)


def _healed_on(options: PruneOptions, teacher: str) -> DataConfig:
    """The text that candidates are healed on, no more of it than that takes, in rows that the teacher reads.

    Raises:
        UsageError: none is named.
    """
    text, choice = options.data, options.prune.choice
    assert isinstance(choice, RankAfterConfig)
    if text is None:
        raise UsageError(
            "Candidates are measured and healed on text: name it with --calibration SOURCE: hub:ORG/NAME[:CONFIG], a "
            "local file, folder or glob, or a token store."
        )
    text = fit_rows(text, [look_at_config(teacher, Faults())])
    return text if facts_of_plan(text).num_rows else dataclasses.replace(text, tokens=choice.rank_after)


def _facts_of(text: DataConfig, model: ModelFacts | None, out: Path, faults: Faults) -> TextFacts | None:
    if (named := named_store(text)) is not None:
        store = faults.of(lambda: TokenStore.open(named))
        return None if store is None else facts_of_store(store)
    return check_data(text, model, out, faults)


def _ranking_of(out: Path) -> Path:
    return beside(out, f"{out.name}.ranking")


def ranking_output(work: Path) -> Output:
    """The folder in which candidate cuts are healed."""
    names = rf"[0-9a-f]{{20}}(\.json{UNFINISHED})?|data(\.partial)?"
    return Output(work, "the results of candidate cuts", has_only(names), folder=True)


def prune_best(
    asked: PruneConfig,
    choice: RankAfterConfig,
    healing: DistillConfig,
    scoring: EvalConfig,
    *,
    teacher: str,
    out: Path,
    work: Path,
) -> PruneResult:
    """Rank the candidates in `work`, by all processes together, and prune the best of them into `out`."""
    ranking = rank_cuts(asked, choice, healing, scoring, teacher=teacher, work=work)
    return on_main(lambda: prune(teacher, out, Chosen(asked=choice, ranking=ranking), **asked.how))


def rank_cuts(
    asked: PruneConfig,
    choice: RankAfterConfig,
    healing: DistillConfig,
    scoring: EvalConfig,
    *,
    teacher: str,
    work: Path,
) -> Ranking:
    """Let criteria and controls propose cuts, heal each distinct one on the same rows in the same order, and choose
    the one that is nearest to the teacher on the same held-out rows or, with `rank_tasks`, scores best on average.

    Raises:
        UsageError: the token store has no held-out rows, or fewer training rows than `rank_after` asks for; or no
            candidate can be cut, and repaired where that was asked for.
    """
    started = time.monotonic()
    folder, data = on_main(lambda: resolve_model(teacher)), Path(str(choice.data))
    _check_heal(healing, TokenStore.open(data).num_heldout, str(data))
    _say_if_short(choice, healing)
    reads = prune_inputs(lambda: model_fingerprint(folder), choice, asked.repairing)
    results = Results(work, on_main(lambda: {role: find() for role, find in reads.items()}))
    types = on_main(lambda: derive(teacher, folder, choice).layer_types)
    test, prefix = task_test(choice, scoring), (TokenStore.open(data).framing or Framing()).rows

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

    def heal(kept: Cut, place: Path) -> dict[str, Any]:
        start = place / "start"

        def cut() -> None:
            if not start.is_dir():
                planned = Planned(keep=format_layers(kept), derivation=plans[kept])
                prune(folder, start, planned, **asked.how)

        on_main(cut)
        config = short_heal(healing, choice.rank_after)
        distill(config, student=start, teacher=folder, data=data, out=place / "student", work=place / "train")
        return {} if test is None else _scored(test.of_folder(place / "student", prefix))

    proposals, measured = propose(choice, types, results, measure)
    candidates = possible(gather(proposals), refusal)
    healed = heal_all(candidates, results, settings, heal)
    details = {
        "rank_after_tokens": choice.rank_after,
        "compared_by": compared_by(healed),
        **_lead(healed),
        "candidates": healed,
        "criteria": measured,
        "seconds": round(time.monotonic() - started, 3),
    }
    best = tuple(healed[0]["kept_layers"])
    return Ranking(method="rank-after", kept_layers=best, scores=(), details=details)


def _scored(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A candidate's mean score over tasks as `error`, 1 less that, and each item's."""
    scores = {row["task"]: row["items"] for row in rows}
    return {"error": 1 - fmean(map(fmean, scores.values())), "items": scores}


def _lead(healed: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """By how much the best candidate's mean score exceeds the next one's over the same items, and its standard error;
    nothing where none was scored. The items go."""
    scores = [record["after"].pop("items", None) for record in healed]
    if len(scores) < 2 or None in scores[:2]:
        return {}
    found = [mean_and_error(np.subtract(items, scores[1][task]).tolist()) for task, items in scores[0].items()]
    lead, error = fmean(mean for mean, _ in found), math.hypot(*(error for _, error in found)) / len(found)
    verdict = "" if lead > 2 * error else ", which is noise"
    say(f"The best candidate leads by {lead:.1%} ± {error:.1%} over the same items{verdict}.")
    return {"lead": {"value": lead, "stderr": error}}


def _check_heal(healing: DistillConfig, num_heldout: int, data: str) -> None:
    """Refuse a heal that nothing would be measured after.

    Raises:
        UsageError: no held-out rows are to be read of the `num_heldout` there are.
    """
    if not min(most_heldout_rows(healing), num_heldout):
        raise UsageError(
            f"Candidates are compared on held-out rows, and of {data} none are to be read: set data.heldout_sequences "
            "and distill.heldout_sequences above 0."
        )


def _say_if_short(choice: RankAfterConfig, healing: DistillConfig) -> None:
    """Say when a heal is too short to settle the order of the candidates."""
    if (steps := choice.rank_after // healing.batch_tokens) < _FEW_STEPS:
        say(
            f"Each candidate is healed for {steps} steps only, and the order of cuts settles in some hundred: give it "
            "more tokens (prune.rank_after), or smaller steps (distill.batch_tokens)."
        )
