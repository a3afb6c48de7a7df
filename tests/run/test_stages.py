"""Chains of cut and heal, and a student that teaches its own cut: what each stage is made from, and what is left."""

import json
from pathlib import Path

import pytest
import torch
from commands import warm
from fault_injection import Signal
from helpers import run_cli
from recipe_world import make_run_world, make_steps
from safetensors.torch import load_file
from torch.nn.functional import cosine_similarity, layer_norm
from transformers import AutoModelForCausalLM

from compress.base.disk import read_json
from compress.base.errors import UsageError
from compress.data import TokenStore
from compress.distill.config import HiddenConfig
from compress.distill.objective.pairs import block_pairs
from compress.distill.objective.part import Pair
from compress.model.cuts import cuts_of, kept_layers
from compress.model.load import load_config
from compress.prune import prune
from compress.run.recipe import load_recipe

CHAIN = (
    "stages=[{keep: '0,1,3', tokens: 2k}, {keep: '0,2', tokens: 2k, teacher: previous}, {teacher: self, tokens: 2k}]"
)
SMALL = ["eval.tasks=[]", "eval.speed=false", "eval.samples=0", "eval.responses=0"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run_world(tmp_path_factory.mktemp("world"))


def command(world: Path, out: Path, *more: str) -> list[str]:
    return ["run", str(world / "recipe.yaml"), "--out", str(out), *(f"--set={each}" for each in (CHAIN, *SMALL)), *more]


@pytest.fixture(scope="module")
def run(world: Path) -> Path:
    done = run_cli(*command(world, world / "run"))
    assert done.returncode == 0, done.stderr
    return world / "run"


def first_measured(work: Path) -> dict[str, float]:
    rows = [json.loads(line) for line in (work / "metrics.jsonl").read_text().splitlines()]
    found: dict[str, float] = next(row for row in rows if row["step"] == 0 and "heldout_kl" in row)
    return found


def heldout(run: Path) -> torch.Tensor:
    store = TokenStore.open(run / "data")
    return torch.as_tensor(store.heldout(store.num_heldout)).long()


def kl(teacher: Path, student: Path, rows: torch.Tensor) -> float:
    """KL(teacher || student) a predicted token in float64, from the models as transformers has them."""
    log_p, log_q = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)(rows).logits[:, :-1].log_softmax(-1)
        for folder in (teacher, student)
    )
    return float((log_p.exp() * (log_p - log_q)).sum(-1).mean())


@torch.no_grad()
def test_each_stage_starts_from_and_is_taught_by_what_the_recipe_says(run: Path, world: Path) -> None:
    rows = heldout(run)
    one, two = run / "stages" / "1", run / "stages" / "2"
    for work, teacher, start in (
        (one / "train", world / "teacher", one / "student-init"),
        (two / "train", one / "student", two / "student-init"),
        (run / "train", two / "student", two / "student-init"),
    ):
        assert first_measured(work)["heldout_kl"] == pytest.approx(kl(teacher, start, rows), rel=1e-4)
    records = [read_json(place / "student" / "distill.json")["manifest"]["config"] for place in (one, two, run)]
    assert [record["seed"] for record in records] == [0, 1, 2]
    assert not (run / "student-init").exists()


def test_the_report_and_verify_know_the_stages(run: Path, world: Path) -> None:
    report = read_json(run / "report.json")
    assert [stage["kept_layers"] for stage in report["stages"]] == [[0, 1, 3], [0, 3], [0, 3]]
    assert report["student_init"]["params"] == report["student"]["params"] == report["stages"][-1]["parameters"]
    for place, stage in zip((run / "stages/1", run / "stages/2", run), report["stages"], strict=True):
        assert stage["heldout_kl"] == read_json(place / "student" / "distill.json")["heldout_kl"]
        assert stage["heldout_kl_before"] == first_measured(place / "train")["heldout_kl"]
    assert "Stages" in (run / "report.md").read_text()
    assert "Stage 1: " in (run / "report.html").read_text()
    done = run_cli("verify", str(run))
    assert done.returncode == 0, done.stdout
    assert "stages/2/student: made from teacher" in done.stdout
    again = run_cli(*command(world, run))
    assert all(f"{name}: done, unchanged." in again.stderr for name in ("prune-1", "distill-1", "prune-2", "distill"))


def test_the_plan_has_every_stage(world: Path, tmp_path: Path) -> None:
    done = run_cli(*command(world, tmp_path / "run", "--dry-run"))
    assert done.returncode == 0, done.stderr
    for words in ("keep 3 of 4 layers", "keep 2 of 3 layers: 0,2", "distill-1: 2.05k", "distill-2: ", "distill: "):
        assert words in done.stdout, done.stdout
    assert not (tmp_path / "run").exists()


def test_a_cut_of_a_cut_is_the_cut_of_the_first_and_says_so(world: Path, tmp_path: Path) -> None:
    teacher = world / "teacher"
    prune(teacher, tmp_path / "three", "0,1,3")
    prune(tmp_path / "three", tmp_path / "two", "1-2", healed_from=tmp_path / "three")
    prune(teacher, tmp_path / "direct", "1,3")
    found, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("two", "direct"))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    record = read_json(tmp_path / "two" / "prune.json")
    assert record["original"] == {"kept_layers": [1, 3], "num_layers": 4}
    assert "original" not in read_json(tmp_path / "direct" / "prune.json")
    student = load_config(tmp_path / "two")
    for guide, pairs in (
        (teacher, ((0, 1), (1, 3))),
        (tmp_path / "three", ((0, 1), (1, 2))),
        (tmp_path / "direct", ((0, 0), (1, 1))),
    ):
        config = load_config(guide)
        pair = Pair(student, config, kept_layers(cuts_of(tmp_path / "two"), config))
        assert block_pairs("hidden", HiddenConfig(pairs="kept"), pair) == pairs


def test_a_kill_in_the_second_stage_changes_nothing(run: Path, world: Path, tmp_path: Path) -> None:
    strike = Signal(at=("compress.distill.loop.checkpoint:save_file",), path="*stages/2/train/*", call=2)
    killed = warm().run((strike,), *command(world, tmp_path / "run"))
    assert killed.returncode == -9
    assert not (tmp_path / "run/stages/2/student").exists()
    done = run_cli(*command(world, tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    for name in ("stages/1/student", "stages/2/student-init", "stages/2/student", "student"):
        ours, theirs = (path / name / "model.safetensors" for path in (tmp_path / "run", run))
        assert ours.read_bytes() == theirs.read_bytes(), name


def test_hidden_states_of_a_later_stage_are_compared_with_the_first_teachers(world: Path, tmp_path: Path) -> None:
    """The student's first block is the teacher's block 1: their distance at step 0, in float64."""
    stages = "stages=[{keep: '0,1,3', tokens: 1k}, {keep: '1,2', tokens: 1k}]"
    hidden = ["distill.weights={hidden: 1}", "distill.hidden={leave_out_last: 1}"]
    recipe = load_recipe(world / "recipe.yaml", [stages, *hidden])
    make_steps(recipe, tmp_path, world / "teacher", "data", "prune-1", "distill-1", "prune", "distill")
    own, theirs = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)(heldout(tmp_path), output_hidden_states=True)
        for folder in (tmp_path / "student-init", world / "teacher")
    )
    states = (own.hidden_states[1].detach(), theirs.hidden_states[2].detach())
    a, b = (layer_norm(each[:, :-1], each.shape[-1:]) for each in states)
    expected = float((1 - cosine_similarity(a, b, dim=-1)).mean())
    assert first_measured(tmp_path / "train")["heldout_hidden"] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ("[{tokens: 1k, teacher: self}]", "there is no student before the first stage"),
        ("[{keep: 0-2, teacher: previous}]", "there is no student before the first stage"),
        ("[{keep: 0-2}, {tokens: 1k}]", "it cuts nothing"),
        ("[{keep: 0-2}, {keep: 0-1, teacher: self}]", "write `previous`"),
        ("[{keep: 0-2}, {keep: 0-1, layers: 2}]", "write one of the two"),
        ("[{keep: 0-2}, {repair: true, teacher: self}]", "cuts nothing"),
        ("[{keep: 0-2, by: random}]", "write one of the two"),
        ("[{layers: 3, key: 1}]", "unknown key 'stages.0.key'"),
    ],
)
def test_stages_that_mean_nothing_are_refused_when_read(stages: str, words: str, world: Path) -> None:
    with pytest.raises(UsageError, match=words):
        load_recipe(world / "recipe.yaml", [f"stages={stages}"])


def test_what_a_chain_has_no_place_for_is_refused(world: Path) -> None:
    for other in ("prune={layers: 2, by: random}", "prune={keep: 0-1}", "student={model: x}"):
        with pytest.raises(UsageError, match="stages"):
            load_recipe(world / "recipe.yaml", ["prune={}", "stages=[{keep: 0-2}]", other])
