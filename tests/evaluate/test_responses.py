"""How alike two models write: literals, properties, and the greedy continuations themselves."""

import functools
from pathlib import Path

import pytest
from helpers import save_tiny_model
from hypothesis import given
from hypothesis import strategies as st

from compress.evaluate.text.samples import compare_responses, greedy_ids, response_similarity
from compress.inference.readout import load_checkpoint

load = functools.partial(load_checkpoint, device="cpu")
tokens = st.lists(st.integers(0, 3), max_size=8)


def test_rouge_prefix_and_identity_by_hand() -> None:
    # Longest common subsequence 1 3 5: precision 3/4, recall 3/5, F 2/3. The same start: 1 of 5 tokens.
    assert compare_responses([1, 2, 3, 4, 5], [1, 3, 5, 9]) == pytest.approx((2 / 3, 1 / 5, 0.0))
    assert compare_responses([1, 2], [1, 2]) == (1.0, 1.0, 1.0)
    assert compare_responses([1, 2], [3]) == (0.0, 0.0, 0.0)
    assert compare_responses([1, 2, 3], [1, 2]) == pytest.approx((0.8, 2 / 3, 0.0))


def longest_common_subsequence(a: list[int], b: list[int]) -> int:
    if not a or not b:
        return 0
    if a[-1] == b[-1]:
        return 1 + longest_common_subsequence(a[:-1], b[:-1])
    return max(longest_common_subsequence(a[:-1], b), longest_common_subsequence(a, b[:-1]))


@given(tokens, tokens)
def test_rouge_l_is_that_of_the_longest_common_subsequence(a: list[int], b: list[int]) -> None:
    overlap, prefix, identical = compare_responses(a, b)
    shared = longest_common_subsequence(a, b)
    assert overlap == pytest.approx(1.0 if a == b else 2 * shared / (len(a) + len(b)))
    assert compare_responses(b, a) == pytest.approx((overlap, prefix, identical))
    assert identical <= prefix <= overlap + 1e-12 or not shared


def test_similarity_is_that_of_the_greedy_continuations(tmp_path: Path) -> None:
    model, teacher = (
        load_checkpoint(save_tiny_model(tmp_path / str(seed), seed=seed), device="cpu") for seed in (1, 2)
    )
    prompts = ["The river", "A stone", "", "Iron and"]
    same = response_similarity(model, model, prompts, 5)
    assert same is not None
    assert (same["prompts"], same["new_tokens"]) == (3, 5)
    assert (same["rouge_l"], same["identical"], same["rouge_l_stderr"]) == (1.0, 1.0, 0.0)
    found = response_similarity(model, teacher, prompts, 5)
    expected = []
    for prompt in prompts:
        ours, theirs = (greedy_ids(each, each.prompt_ids(prompt), 5, context=None) for each in (model, teacher))
        if ours is not None and theirs is not None:
            expected.append(compare_responses(theirs, ours)[0])
    assert found is not None
    assert found["rouge_l"] == pytest.approx(sum(expected) / 3)
    assert response_similarity(model, teacher, [""], 5) is None


def test_models_of_different_contexts_see_the_same_of_a_long_prompt(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short, long = (
        load_checkpoint(
            save_tiny_model(tmp_path / str(size), "gpt2", seed=1, max_position_embeddings=size), device="cpu"
        )
        for size in (32, 128)
    )
    prompt = "".join(chr(97 + i % 26) for i in range(90))
    found = response_similarity(short, long, [prompt], 8)
    assert "Of a prompt of 90 tokens" in capsys.readouterr().err
    seen = short.prompt_ids(prompt)[-24:]
    expected = compare_responses(*(greedy_ids(each, seen, 8, context=None) or [] for each in (long, short)))
    assert found is not None
    assert (found["rouge_l"], found["common_prefix"], found["identical"]) == pytest.approx(expected)
