"""`rank_after`: candidates are healed alike, the best goes on, and what is finished is not done again."""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import warm
from helpers import run_cli, tiny_config
from launch import launch
from recipe_world import make_run_world, make_steps
from transformers import AutoModelForCausalLM

from compress.base.config import build_from
from compress.base.disk import read_json
from compress.base.errors import InputError, UsageError
from compress.data import TokenStore
from compress.distill import distill
from compress.distill.loop.guard import Diverged
from compress.evaluate import evaluate_model
from compress.prune import PruneConfig, RankAfterConfig, plan_prune, prune
from compress.prune.plan import derive
from compress.run import rank_after
from compress.run.candidates import Candidate, Results, gather, heal_all, possible
from compress.run.plan import plan_run
from compress.run.recipe import load_recipe
from compress.verify import verify_run

PLANTED = (0, 1)
ALIKE = ["full_attention"] * 6
RANKING = ["prune.keep=null", "prune.layers=2", "prune.rank_after=2k"]
NAMED = [*RANKING, "prune.candidates=[block-influence, alternate, 'contiguous:2']"]
"""Three cuts of four layers: 2,3 by block influence, which finds the idle blocks, 1,3 and 0,3."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher whose first two blocks do nothing, and its text."""
    folder = make_run_world(tmp_path_factory.mktemp("ranking"))
    model = AutoModelForCausalLM.from_pretrained(folder / "teacher")
    for layer in PLANTED:
        torch.nn.init.zeros_(model.model.layers[layer].self_attn.o_proj.weight)
        torch.nn.init.zeros_(model.model.layers[layer].mlp.down_proj.weight)
    model.save_pretrained(folder / "teacher")
    return folder


@pytest.fixture(scope="module")
def whole(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ranking that nothing stopped."""
    return ranked(world, tmp_path_factory.mktemp("whole"), NAMED)


def ranked(world: Path, run: Path, changes: list[str]) -> Path:
    recipe = load_recipe(world / "recipe.yaml", changes)
    make_steps(recipe, run, world / "teacher", "data", "prune")
    return run


def ranking_of(run: Path) -> dict[str, Any]:
    record: dict[str, Any] = read_json(run / "student-init" / "prune.json")
    assert record["method"] == "rank-after"
    assert record["kept_layers"] == record["ranking"]["candidates"][0]["kept_layers"]
    return record["ranking"]


def test_the_cut_that_is_best_after_its_heal_is_kept(world: Path, whole: Path, tmp_path: Path) -> None:
    """Losses before are those of transformers' own models; those after, of heals by the distillation step alone."""
    ranking = ranking_of(whole)
    found = {tuple(record["kept_layers"]): record for record in ranking["candidates"]}
    assert {kept: record["proposed_by"] for kept, record in found.items()} == {
        (2, 3): ["block-influence"],
        (1, 3): ["alternate"],
        (0, 3): ["contiguous:2"],
    }
    assert ranking["candidates"][0]["kept_layers"] == [2, 3]  # without the blocks that do nothing
    after = [record["after"]["kl"] for record in ranking["candidates"]]
    assert after == sorted(after)
    assert ranking["compared_by"] == "kl"
    rows = torch.from_numpy(TokenStore.open(whole / "data").heldout(4))
    teacher = AutoModelForCausalLM.from_pretrained(world / "teacher").double()
    recipe = load_recipe(world / "recipe.yaml", NAMED)
    for kept, record in found.items():
        student = prune(world / "teacher", tmp_path / str(kept), ",".join(map(str, kept))).out
        model = AutoModelForCausalLM.from_pretrained(student).double()
        with torch.no_grad():
            hard = float(model(rows, labels=rows).loss)
            p, q = (m(rows).logits[:, :-1].log_softmax(-1) for m in (teacher, model))
            soft = float((p.exp() * (p - q)).sum(-1).mean())
        assert record["before"]["hard"] == pytest.approx(hard, abs=1e-5)
        assert record["before"]["soft"] == pytest.approx(soft, abs=1e-5)
        assert record["before"]["kl"] == pytest.approx(soft, abs=1e-5)
        assert record["before"]["loss"] == pytest.approx(0.8 * soft + 0.2 * hard, abs=1e-5)
        healed = distill(
            rank_after.short_heal(recipe.distill, 2000),
            student=student,
            teacher=world / "teacher",
            data=whole / "data",
            out=tmp_path / f"{kept}-healed",
            work=tmp_path / f"{kept}-train",
        )
        assert record["after"]["loss"] == healed.heldout_loss
        assert record["after"]["kl"] == healed.heldout_kl
    assert found[(2, 3)]["before"]["soft"] < 1e-6


def test_a_ranking_that_was_stopped_goes_on_with_the_candidates_that_are_done(
    world: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append("heal")
        if len(calls) == 2:
            raise KeyboardInterrupt
        return distill(*args, **kwargs)

    monkeypatch.setattr(rank_after, "distill", counted)
    with pytest.raises(KeyboardInterrupt):
        ranked(world, tmp_path, NAMED)
    measured = rank_after.measure_layers
    monkeypatch.setattr(rank_after, "measure_layers", lambda *args: calls.append("measure") or measured(*args))
    ranked(world, tmp_path, NAMED)
    assert calls == ["heal"] * 4
    uncut, cut_off = ranking_of(whole), ranking_of(tmp_path)
    assert cut_off["candidates"] == uncut["candidates"]
    assert not [path for path in (tmp_path / "ranking").iterdir() if path.is_dir()]
    ranked(world, tmp_path, [*RANKING, "prune.candidates=[block-influence, alternate, '1,2']"])
    assert calls == ["heal"] * 5  # only what is new
    ranked(world, tmp_path, [*NAMED, "distill.lr=2e-3"])
    assert calls == ["heal"] * 8  # healed otherwise, so all anew, but no layer measured again


def test_candidates_are_the_distinct_cuts_of_criteria_and_controls() -> None:
    asked = PruneConfig(layers=3, rank_after=1000).choice
    assert isinstance(asked, RankAfterConfig)
    names = [name for name, _ in asked.proposals(ALIKE)]
    assert set(names) == {
        "block-influence", "angular", "perplexity", "perplexity-greedy", "taylor", "magnitude", "random",
        "contiguous:3", "uniform:3", "alternate",
    }  # fmt: skip
    draws = [how.seed for name, how in asked.proposals(ALIKE) if name == "random" and not isinstance(how, tuple)]
    assert draws == [0, 1, 2]
    assert "alternate" not in [name for name, _ in asked.proposals([*ALIKE, ALIKE[0]])]  # which keeps four of seven
    only = PruneConfig(layers=3, rank_after=1000, by="taylor").choice
    assert isinstance(only, RankAfterConfig)
    assert {name for name, _ in only.proposals(ALIKE)} == {"taylor", "random", "contiguous:3", "uniform:3", "alternate"}
    assert gather([("a", (0, 2)), ("b", (1, 2)), ("a", (0, 2)), ("c", (0, 2))]) == [
        Candidate((0, 2), ("a", "c")),
        Candidate((1, 2), ("b",)),
    ]


def test_a_candidate_is_the_cut_that_keep_makes_of_its_spec(tmp_path: Path) -> None:
    tiny_config("gemma2", num_hidden_layers=8, head_dim=8).save_pretrained(tmp_path)
    specs = ("uniform:4", "pattern:alternate", "contiguous:4", "alternate")
    asked = PruneConfig(layers=4, rank_after=1000, candidates=specs).choice
    assert isinstance(asked, RankAfterConfig)
    found = dict(asked.proposals(derive("gemma2", tmp_path, "alternate").layer_types))
    assert found == {spec: plan_prune(str(tmp_path), spec).kept_layers for spec in specs}
    assert found["uniform:4"] != (0, 2, 5, 7)  # evenly spaced, blind to sliding and full attention


def test_a_cut_that_cannot_be_made_is_no_candidate(capsys: pytest.CaptureFixture[str]) -> None:
    candidates = [Candidate((1, 3), ("alternate",)), Candidate((0, 3), ("angular", "contiguous:2"))]
    refusals = {(1, 3): "layer 0 must stay.", (0, 3): None}
    assert possible(candidates, lambda kept: refusals[kept]) == candidates[1:]
    assert "Layers 1,3 (alternate) are no candidate: layer 0 must stay." in " ".join(capsys.readouterr().err.split())
    with pytest.raises(UsageError, match="No candidate can be cut"):
        possible(candidates, lambda _: "no.")


def test_the_loss_after_the_heal_decides(tmp_path: Path) -> None:
    """By KL, whatever was minimised; by what was minimised where one was healed before KL was measured."""
    losses = {(0,): (1.0, 5.0), (1,): (2.0, float("nan")), (2,): (3.0, 4.0), (3,): (None, 4.0), (4,): (1.0, 2.0)}

    def heal(kept: tuple[int, ...], place: Path) -> dict[str, Any]:
        rows = [{f"heldout_{part}": loss for part in ("loss", "soft", "hard")} for loss in losses[kept]]
        if kept in kls:
            rows[1]["heldout_kl"] = kls[kept]
        (place / "train").mkdir(parents=True)
        text = "".join(json.dumps(row) + "\n" for row in (rows[0], {"loss": 9.0}, rows[1]))
        (place / "train" / "metrics.jsonl").write_text(text.replace("NaN", "null"))
        if kept == (4,):
            raise Diverged("3 steps in a row were skipped.")
        return {}

    def order(cuts: list[tuple[int, ...]], folder: Path) -> list[tuple[int, ...]]:
        records = heal_all(
            [Candidate(kept, ("x",)) for kept in cuts], Results(folder, {}), lambda kept: {"cut": kept}, heal
        )
        return [record["kept_layers"] for record in records]

    kls: dict[tuple[int, ...], float] = {}
    assert order([(0,), (1,), (2,), (3,)], tmp_path / "a") == [(2,), (3,), (0,), (1,)]
    assert order([(4,), (0,)], tmp_path / "d") == [(0,), (4,)]
    assert order([(3,), (2,)], tmp_path / "b") == [(3,), (2,)]
    with pytest.raises(InputError, match="No candidate cut has a finite"):
        order([(1,)], tmp_path / "c")
    kls |= {(0,): 0.1, (2,): 0.2, (4,): 0.0}
    assert order([(2,), (4,), (0,)], tmp_path / "e") == [(0,), (2,), (4,)]
    assert order([(0,), (3,), (2,)], tmp_path / "f") == [(3,), (2,), (0,)]


def test_what_cannot_be_ranked_is_refused(world: Path, tmp_path: Path) -> None:
    for options, says in (
        ({"rank_after": 1000}, "write `layers`"),
        ({"rank_after": 1000, "layers": 2, "keep": "alternate"}, "no `keep`"),
        ({"layers": 2, "by": "random", "candidates": ["taylor"]}, "write `rank_after`"),
        ({"layers": 2, "rank_after": 1000, "candidates": []}, "empty"),
        ({"layers": 2, "rank_after": 1000, "candidates": ["tailor"]}, "block-influence"),
    ):
        with pytest.raises(UsageError, match=says):
            build_from(PruneConfig, options, "a recipe")
    for changes, says in (
        (["prune.candidates=['contiguous:3']"], "keeps 3 of 4 layers, and layers = 2"),
        (["prune.layers=5"], "has 4 layers"),
        (["data.heldout_sequences=0"], "held-out rows"),
        (["prune.candidates=[alternate]", "prune.rank_after=1G"], "tokens"),
        (["prune.candidates=['2,3']", "prune.repair=true"], "No candidate can be cut as asked"),
    ):
        with pytest.raises(UsageError, match=says):
            ranked(world, tmp_path / changes[-1], [*RANKING, *changes])
    done = run_cli("prune", str(world / "teacher"), str(tmp_path / "out"), "--layers", "2", "--rank-after", "1k")
    assert (done.returncode, "--calibration SOURCE" in done.stderr) == (2, True), done.stderr


def test_a_run_with_a_ranking_is_reported_and_verified(world: Path, tmp_path: Path) -> None:
    changes = [word for change in NAMED for word in ("--set", change)]
    done = run_cli("run", str(world / "recipe.yaml"), "--out", str(tmp_path / "run"), *changes)
    assert done.returncode == 0, done.stderr
    assert "ranking 3 of 3" in done.stderr
    assert [check.describe() for check in verify_run(tmp_path / "run") if check.status == "FAILED"] == []
    best = ranking_of(tmp_path / "run")["candidates"][0]
    page = (tmp_path / "run" / "report.md").read_text()
    assert f"| 2-3 | block-influence | {best['before']['kl']:.4f} | {best['after']['kl']:.4f} |" in page


def test_a_plan_counts_the_heals_of_the_candidates(world: Path, tmp_path: Path) -> None:
    plan, _ = plan_run(load_recipe(world / "recipe.yaml", NAMED), tmp_path / "run", flops_per_s=1e9)
    assert plan is not None
    flops = plan.distill.flops + 3 * 2000 * plan.distill.flops_per_token
    assert plan.to_dict()["hours"] * 3600 * 1e9 == pytest.approx(flops)
    assert "short heal" in plan.describe()
    assert "at most 6k tokens" in plan.describe()


COMMAND = ["--layers", "2", "--rank-after", "2k", "--by", "block-influence", "--set", "data.seq_len=64"]
COMMAND += ["--set", "data.heldout_sequences=4", "--set", "distill.batch_tokens=512", "--set", "distill.lr=1e-3"]


def test_the_command_line_ranks_even_after_a_kill(world: Path, tmp_path: Path) -> None:
    command = ["prune", str(world / "teacher"), str(tmp_path / "out"), "--calibration", str(world / "text.jsonl")]
    command += [*COMMAND, "--json"]
    process = warm().start((), *command)
    work = tmp_path / "out.ranking"
    while process.poll() is None and not list(work.glob("*/student")):  # one candidate is healed, and not yet noted
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert not (tmp_path / "out").exists()
    done = run_cli(*command)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["dropped_layers"] == list(PLANTED)
    assert record["ranking"]["candidates"][0]["proposed_by"][0] == "block-influence"
    assert not work.exists()


@pytest.mark.slow
def test_two_processes_rank_together(world: Path, tmp_path: Path) -> None:
    """Losses are those of one process but for the order of sums, and the cut is the same."""
    base = ["prune", str(world / "teacher"), "--calibration", str(world / "text.jsonl"), *COMMAND]
    both = launch(2, [*base[:2], str(tmp_path / "two"), *base[2:]])
    assert both.returncode == 0, both.stderr
    assert both.stderr.count("ranking 1 of") == 2  # the main process alone: a line before, a line after
    one = run_cli(*base[:2], str(tmp_path / "one"), *base[2:])
    assert one.returncode == 0, one.stderr
    records = [read_json(tmp_path / name / "prune.json") for name in ("one", "two")]
    losses = [
        {tuple(c["kept_layers"]): c["after"]["loss"] for c in record["ranking"]["candidates"]} for record in records
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert records[0]["kept_layers"] == records[1]["kept_layers"]
    assert not (tmp_path / "two.ranking").exists()


def test_candidates_may_be_compared_by_their_scores(world: Path, whole: Path, tmp_path: Path) -> None:
    """Each healed candidate's score is that of an evaluation of it, and the order is theirs."""
    scored = [*NAMED, "prune.rank_tasks=[tiny_choice]", "prune.rank_items=7", "eval.limit=7"]
    ranking = ranking_of(ranked(world, tmp_path / "run", scored))
    assert ranking["compared_by"] == "error"
    recipe = load_recipe(world / "recipe.yaml", scored)
    config = dataclasses.replace(recipe.eval.afterwards.without_speed(), samples=0, responses=0)
    errors = []
    for number, record in enumerate(ranking["candidates"]):
        assert "items" not in record["after"]
        place = tmp_path / str(number)
        student = prune(world / "teacher", place / "cut", ",".join(map(str, record["kept_layers"]))).out
        healing = rank_after.short_heal(recipe.distill, 2000)
        paths = {"student": student, "teacher": world / "teacher", "data": tmp_path / "run" / "data"}
        healed = distill(healing, **paths, out=place / "student", work=place / "train")
        score = evaluate_model(healed.out, config, text=tmp_path / "run" / "data")["tasks"]["tiny_choice"]["acc"]
        assert record["after"]["error"] == pytest.approx(1 - score)
        errors.append(1 - score)
    assert errors == sorted(errors)
    assert ranking["lead"]["value"] == pytest.approx(errors[1] - errors[0])
    by_nearness = {tuple(r["kept_layers"]): r["after"]["kl"] for r in ranking_of(whole)["candidates"]}
    assert {tuple(r["kept_layers"]): r["after"]["kl"] for r in ranking["candidates"]} == by_nearness
