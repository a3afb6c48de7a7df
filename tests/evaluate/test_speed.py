"""What the speed record says must follow from the clock and the cache."""

import itertools
from pathlib import Path

import pytest
import torch
from helpers import save_tiny_model

from compress.evaluate import EvalConfig, compare_speed, speed
from compress.evaluate.checkpoint import load_checkpoint
from compress.evaluate.samples import continuations

CONFIG = EvalConfig(device="cpu", speed_prompt_tokens=12, speed_decode_tokens=5, speed_repeats=3, speed_batch=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("speed") / "model")


def test_figures_follow_from_the_clock(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count(0.0, 0.5)
    monkeypatch.setattr(speed, "_now", lambda device: next(ticks))
    record = compare_speed({"a": folder, "b": folder}, CONFIG)["b"]
    assert record["prefill_tokens_per_s"] == pytest.approx(2 * 12 / 0.5)
    assert record["decode_tokens_per_s"] == pytest.approx(2 * 5 / (5 * 0.5))
    assert record["latency_ms_p50"] == record["latency_ms_p95"] == pytest.approx(500.0)
    assert record["time_to_first_token_ms"] == pytest.approx(500.0)
    shape = {"device": "cpu", "dtype": "float32", "batch": 2, "prompt_tokens": 12, "decode_tokens": 5, "rounds": 3}
    assert {key: record[key] for key in shape} == shape


def test_models_take_turns_and_warm_up_rounds_are_left_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = []
    run_round = speed._run_round

    def spy(checkpoint: object, config: EvalConfig) -> tuple[float, list[float]]:
        order.append(getattr(checkpoint, "name", ""))
        return run_round(checkpoint, config)  # type: ignore[arg-type]

    monkeypatch.setattr(speed, "_run_round", spy)
    other = save_tiny_model(folder.parent / "other", num_hidden_layers=2)
    found = compare_speed({"a": folder, "b": other}, CONFIG)
    assert order[:10] == [str(folder), str(other)] * 5
    assert found["a"]["rounds"] == 3


def test_decoding_feeds_one_token_at_a_time_and_gives_the_uncached_tokens(folder: Path) -> None:
    checkpoint = load_checkpoint(folder, CONFIG)
    seen = []
    checkpoint.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].clone()), with_kwargs=True
    )
    with torch.inference_mode():
        speed._run_round(checkpoint, CONFIG)
    assert [tuple(ids.shape) for ids in seen] == [(2, 12)] + [(2, 1)] * 5
    with torch.no_grad():
        whole = torch.cat(seen, dim=1)
        greedy = checkpoint.model(input_ids=whole, use_cache=False).logits.argmax(-1)
    assert torch.equal(greedy[:, 11:16], whole[:, 12:])


def test_peak_memory_is_at_least_the_weights(folder: Path) -> None:
    weights = sum(p.nbytes for p in load_checkpoint(folder, CONFIG).model.parameters()) / 2**30
    peak = compare_speed({"a": folder}, CONFIG)["a"]["peak_gib"]
    assert peak is None or weights <= peak < weights + 0.5


def test_samples_are_the_greedy_continuation(folder: Path) -> None:
    checkpoint = load_checkpoint(folder, CONFIG)
    (sample,) = continuations(checkpoint, ["Once upon"], 6)
    ids = checkpoint.tokenizer("Once upon")["input_ids"]
    with torch.no_grad():
        for _ in range(6):
            ids.append(int(checkpoint.model(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == checkpoint.tokenizer.eos_token_id:
                break
    expected = checkpoint.tokenizer.decode(ids[9:], skip_special_tokens=True)
    assert sample == {"prompt": "Once upon", "continuation": expected}
