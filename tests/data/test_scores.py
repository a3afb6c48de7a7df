"""Scores kept in a token store: how they are taken, counted and described, and the same bytes after any kill."""

import functools
import json
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import byte_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.base.errors import InputError, UsageError
from compress.data import DataConfig, TokenStore, prepare
from compress.data.store import scores
from compress.data.store.scores import make_scores, open_scores, scores_folder
from compress.data.store.selection import bounds, describe, distribution, easy_to_hard

SEQ_LEN = 16
IN_TWOS: dict[str, Any] = {"keep_tokens": True, "block_tokens": 2 * SEQ_LEN}
MADE_OF = {"by": "the ids themselves"}
values = st.lists(st.floats(0, 60, width=16), min_size=1, max_size=60)


def text(number: int) -> dict[str, str]:
    return {"text": f"Number {number} is not {number * number % 97}."}


def answer(number: int) -> dict[str, str]:
    return {"prompt": f"{number}?", "completion": f"{number * number % 97}."}


@pytest.fixture(scope="module", params=[text, answer])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    folder = tmp_path_factory.mktemp("scores")
    lines = [json.dumps(request.param(i)) for i in range(60)]
    (folder / "text.jsonl").write_text("\n".join(lines))
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content + '\n' }}{% endfor %}"
    tokenizer.save_pretrained(folder / "tokenizer")
    config = DataConfig(dataset=str(folder / "text.jsonl"), seq_len=SEQ_LEN, heldout_sequences=2)
    return prepare(config, folder / "tokenizer", folder / "store", visible=False)


def of_ids(store: TokenStore, numbers: Any) -> Any:
    """A score that a test can compute: the token's id, shrunk; none of what is not of an answer."""
    ids, marks = store.rows(numbers), store.marks(numbers)
    return np.where(True if marks is None else marks.answers, ids / 8, np.nan)[:, 1:].astype(np.float32)


def files(path: Path) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in sorted(path.iterdir())}


def kill_at(store: TokenStore, block: int) -> None:
    """Score the store in a process of its own, which is killed in that block of rows."""

    def score(numbers: Any) -> Any:
        if numbers[0] == block * 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return of_ids(store, numbers)

    process = multiprocessing.get_context("fork").Process(
        target=make_scores, args=(store, MADE_OF, score), kwargs=IN_TWOS
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("every", [0.0, 1e9], ids=["saved after each block", "never saved"])
def test_killed_in_any_block_the_bytes_are_those_of_one_pass(
    store: TokenStore, every: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scores, "SAVE_EVERY_S", every)
    whole_of = {**MADE_OF, "whole": True}
    whole = open_scores(make_scores(store, whole_of, functools.partial(of_ids, store), **IN_TWOS), store)
    blocks = -(-store.num_rows // 2)
    for block in (0, 1, blocks // 2, blocks - 1):
        kill_at(store, block)
    scored = []

    def noted(numbers: Any) -> Any:
        scored.append(len(numbers))
        return of_ids(store, numbers)

    path = make_scores(store, MADE_OF, noted, **IN_TWOS)
    assert len(scored) == (1 if every == 0 else blocks)
    assert {name: data for name, data in files(path).items() if name != "index.json"} == {
        name: data for name, data in files(whole.path).items() if name != "index.json"
    }
    expected = of_ids(store, range(store.num_rows))
    assert whole.tokens is not None
    assert np.array_equal(whole.tokens, expected.astype(np.float16), equal_nan=True)
    assert np.isnan(expected).any() == store.marked
    means = [[value for value in row if value == value] for row in expected.tolist()]
    assert whole.rows == pytest.approx([sum(row) / len(row) for row in means], rel=1e-6)
    for each in (path, whole.path):
        for name in files(each):
            (each / name).unlink()
        each.rmdir()


def test_scores_that_are_damaged_or_not_ours_are_named(store: TokenStore) -> None:
    score = functools.partial(of_ids, store)
    path = make_scores(store, {"by": "damage"}, score, keep_tokens=False, block_tokens=1)
    assert open_scores(path, store).tokens is None
    data = (path / "rows.bin").read_bytes()
    (path / "rows.bin").write_bytes(data[:-1] + b"x")
    with pytest.raises(InputError, match=r"rows\.bin is missing or damaged. Remove .*made again"):
        open_scores(path, store)
    other = scores_folder(store, {"by": "another"})
    other.mkdir()
    (other / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        make_scores(store, {"by": "another"}, score, keep_tokens=False, block_tokens=1)


@settings(max_examples=50, deadline=None)
@given(values, st.floats(0, 1), st.floats(0, 1))
def test_a_quantile_is_a_place_in_the_sorted_scores(numbers: list[float], one: float, other: float) -> None:
    """By NumPy's own definitions of quantiles that are values: `lower` and `higher`."""
    first, last = sorted((one, other))
    with_none = np.array([np.nan, *numbers, np.nan], np.float16).reshape(1, -1)
    for found in (np.array(numbers, np.float16).reshape(1, -1), np.array(numbers, np.float32), with_none):
        low, high = bounds(distribution(found), first, last)
        assert low == np.nanquantile(found.astype(np.float64), first, method="lower")
        assert high == np.nanquantile(found.astype(np.float64), last, method="higher")


@settings(max_examples=50, deadline=None)
@given(values)
def test_a_histogram_counts_every_score_once(numbers: list[float]) -> None:
    found = np.array(numbers, np.float16).reshape(-1, 1)
    said = describe(distribution(found))
    assert said["count"] == sum(said["histogram"]["counts"]) == len(numbers)
    assert said["mean"] == pytest.approx(np.mean(numbers, dtype=np.float64))
    assert (said["quantiles"]["0"], said["quantiles"]["1"]) == (min(numbers), max(numbers))


def test_equal_rows_keep_their_order() -> None:
    assert easy_to_hard(np.array([2, 1, 2, 0, 1], np.float32)).tolist() == [3, 1, 4, 0, 2]
