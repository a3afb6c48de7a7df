"""Drafts measured: the counting by hand, a student that is its teacher, texts that drafts do not change, and theory."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import run_cli, save_tiny_model
from transformers import AutoModelForCausalLM

from compress.base.errors import InputError
from compress.evaluate import EvalConfig, evaluate_model
from compress.evaluate.drafting import measure_drafts
from compress.evaluate.text.assisted import count_tests, expected_acceptance, write
from compress.evaluate.text.samples import greedy_ids
from compress.inference.readout import Checkpoint, load_checkpoint

PROMPTS = ["The river runs", "", "Of all stones", "Iron and glass", "A night in"]


def load(folder: Path) -> Checkpoint:
    return load_checkpoint(folder, device="cpu")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("drafts") / "teacher", seed=3, scale=0.12)


@pytest.fixture(scope="module")
def student(teacher: Path) -> Path:
    """Its teacher with some noise: near, and not the same."""
    folder = save_tiny_model(teacher.parent / "student", seed=3, scale=0.12)
    model = AutoModelForCausalLM.from_pretrained(folder)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.03 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


def test_tests_are_counted_up_to_the_first_refused_one() -> None:
    # Two of three, and 9 in the third's place; all three, and 8; none, and 5; the end of text, 0, with two before it.
    drafts = [[1, 2, 3], [4, 5, 6], [7, 7, 7], [1, 2, 0]]
    assert count_tests(drafts, [1, 2, 9, 4, 5, 6, 8, 5, 1, 2, 0]) == [(3, 2), (3, 3), (1, 0), (3, 3)]
    # The last step has no room for drafts; the text ends with the token after a refused one.
    assert count_tests([[1, 2], []], [1, 4, 5]) == [(2, 1), (0, 0)]
    assert count_tests([[1, 2]], [0]) == [(1, 0)]


@pytest.mark.parametrize("sampled", [False, True])
def test_a_student_that_is_its_teacher_is_always_accepted(teacher: Path, sampled: bool) -> None:
    writer, twin = load(teacher), load(teacher)
    ids = writer.prompt_ids(PROMPTS[0])
    for count in (1, 2, 5):
        torch.manual_seed(5)
        found = write(writer, ids, 24, sampled=sampled, draft=twin, draft_tokens=count)
        assert len(found.tokens) == 24
        assert found.tests == [(count, count)] * (24 // (count + 1))


@pytest.mark.parametrize("count", [1, 3, 8])
def test_drafts_do_not_change_what_is_written_greedily(teacher: Path, student: Path, count: int) -> None:
    writer, draft = load(teacher), load(student)
    own = draft.model.generation_config
    accepted = 0
    for prompt in filter(None, PROMPTS):
        ids = writer.prompt_ids(prompt)
        found = write(writer, ids, 24, sampled=False, draft=draft, draft_tokens=count)
        assert found.tokens == greedy_ids(writer, ids, 24, context=None)
        agree = expected_acceptance(writer, draft, ids, found.tokens, sampled=False).tolist()
        place = 0
        for tested, kept in found.tests:  # each was accepted where both prefer the same token, and nowhere else
            assert agree[place : place + tested] == [1.0] * kept + [0.0] * (tested - kept)
            place += kept + 1
        assert place == len(found.tokens)
        accepted += sum(kept for _, kept in found.tests)
    assert accepted
    assert draft.model.generation_config is own


def test_the_expected_acceptance_is_that_of_exact_arithmetic(teacher: Path, student: Path) -> None:
    prompt, tokens = list(b"The river"), list(b" runs on.")
    found = expected_acceptance(load(teacher), load(student), prompt, tokens, sampled=True)
    p, q = (
        AutoModelForCausalLM.from_pretrained(each)
        .double()(torch.tensor([prompt + tokens]))
        .logits[0]
        .softmax(-1)
        .tolist()
        for each in (teacher, student)
    )
    places = range(len(prompt) - 1, len(prompt) + len(tokens) - 1)
    exact = [math.fsum(min(a, b) for a, b in zip(p[i], q[i], strict=True)) for i in places]
    assert found.tolist() == pytest.approx(exact, abs=1e-6)
    assert 0.05 < min(exact) < max(exact) < 0.95


def test_sampled_drafts_are_accepted_as_often_as_theory_says(teacher: Path, student: Path) -> None:
    # One draft token for one text of two tokens: the first place of each prompt is tested in every draw.
    writer, draft = load(teacher), load(student)
    ids = writer.prompt_ids(PROMPTS[0])
    chance = float(expected_acceptance(writer, draft, ids, [0], sampled=True))
    torch.manual_seed(1)
    draws = [write(writer, ids, 2, sampled=True, draft=draft, draft_tokens=1).tests[0] for _ in range(400)]
    assert {tested for tested, _ in draws} == {1}
    share = sum(accepted for _, accepted in draws) / len(draws)
    assert share == pytest.approx(chance, abs=4 * math.sqrt(chance * (1 - chance) / len(draws)))


def test_the_figures_are_those_of_the_rounds(teacher: Path, student: Path) -> None:
    config = EvalConfig(draft_tokens=[2, 5], sample_tokens=12, responses=5)
    writer, draft = load(teacher), load(student)
    before = torch.get_rng_state()
    found = measure_drafts(draft, writer, PROMPTS, config, Checkpoint.prompt_ids)
    assert found is not None
    assert torch.equal(before, torch.get_rng_state())
    assert found["prompts"] == 4
    tests = [
        write(writer, writer.prompt_ids(prompt), 12, sampled=False, draft=draft, draft_tokens=5).tests
        for prompt in filter(None, PROMPTS)
    ]
    long = found["greedy"]["by_draft_tokens"][1]
    tested, accepted = (sum(pair[i] for each in tests for pair in each) for i in (0, 1))
    assert (long["draft_tokens"], long["tested"]) == (5, tested)
    assert long["acceptance"] == accepted / tested
    assert long["tokens_per_step"] == 4 * 12 / sum(map(len, tests))
    for way in (found["greedy"], found["sampled"]):
        a, c = way["predicted_acceptance"], way["cost_ratio"]
        for entry in way["by_draft_tokens"]:
            g = entry["draft_tokens"]
            assert entry["predicted_speedup"] == pytest.approx((1 - a ** (g + 1)) / ((1 - a) * (g * c + 1)))
            assert entry["speedup_quartiles"][0] <= entry["speedup"] <= entry["speedup_quartiles"][1]
    again = measure_drafts(draft, writer, PROMPTS, config, Checkpoint.prompt_ids)
    assert again is not None
    same = ("acceptance", "acceptance_stderr", "tested", "tokens_per_step")
    for one, two in zip(found["sampled"]["by_draft_tokens"], again["sampled"]["by_draft_tokens"], strict=True):
        assert [one[name] for name in same] == [two[name] for name in same]
    assert measure_drafts(draft, writer, [""], config, Checkpoint.prompt_ids) is None


def test_a_model_that_cannot_go_back_is_refused(teacher: Path, tmp_path: Path) -> None:
    stateful = save_tiny_model(tmp_path / "mamba", "mamba", state_size=8, head_dim=8, n_groups=1)
    with pytest.raises(InputError, match=r"transformers cannot let .* Leave eval\.draft_tokens out"):
        write(load(stateful), [1, 2], 4, sampled=False, draft=load(teacher), draft_tokens=2)


def test_the_command_measures_drafts_and_tells_of_them(teacher: Path, student: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps({"text": f"Stone {i} lies by stone {i * i}."}) + "\n" for i in range(40)))
    out = tmp_path / "student.json"
    options = ["--text", str(text), "--out", str(out), "--set", "eval.speed=false", "--set", "eval.sample_tokens=6"]
    options += ["--set", "eval.responses=2", "--set", "eval.heldout_sequences=2", "--draft-tokens", "1,3"]
    refused = run_cli("eval", str(student), *options)
    assert (refused.returncode, "name it (--teacher" in refused.stderr) == (2, True)
    done = run_cli("eval", str(student), "--teacher", str(teacher), *options)
    assert done.returncode == 0, done.stderr
    measured: dict[str, Any] = json.loads(out.read_text())["fidelity"]["draft"]["measured"]
    assert [entry["draft_tokens"] for entry in measured["sampled"]["by_draft_tokens"]] == [1, 3]
    page = run_cli("compare", str(out), "--out", str(tmp_path / "page"))
    assert page.returncode == 0, page.stderr
    shown = (tmp_path / "page" / "compare.md").read_text()
    assert "As a draft of its teacher" in shown
    assert "2 prompts, 6 tokens each" in shown
    with pytest.raises(ValueError, match="ask for some"):
        EvalConfig(draft_tokens=[2], responses=0)
    alone = evaluate_model(student, EvalConfig(draft_tokens=[2], speed=False, samples=0, device="cpu"))
    assert alone["fidelity"] is None
