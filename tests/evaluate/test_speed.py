"""What the speed record says must follow from the clock and the cache."""

import dataclasses
import itertools
from pathlib import Path

import pytest
import torch
from helpers import save_tiny_model
from safetensors.torch import load_file

from compress.evaluate import EvalConfig, compare_speed, speed
from compress.evaluate.text.samples import continuations
from compress.inference.readout import Checkpoint, load_checkpoint
from compress.ship import ExportConfig, export

CONFIG = EvalConfig(
    device="cpu", speed_prompt_tokens=12, speed_decode_tokens=5, speed_repeats=3, speed_batch=2, speed_batches=[]
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("speed") / "model")


def test_figures_follow_from_the_clock(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count(0.0, 0.5)
    monkeypatch.setattr(speed, "now", lambda device: next(ticks))
    record = compare_speed({"a": folder, "b": folder}, CONFIG)["b"]
    assert record["prefill_tokens_per_s"] == pytest.approx(2 * 12 / 0.5)
    assert record["decode_tokens_per_s"] == pytest.approx(2 * 5 / (5 * 0.5))
    assert record["latency_ms_p50"] == record["latency_ms_p95"] == pytest.approx(500.0)
    assert record["time_to_first_token_ms"] == pytest.approx(500.0)
    shape = {"device": "cpu", "dtype": "float32", "batch": 2, "prompt_tokens": 12, "decode_tokens": 5, "rounds": 3}
    assert {key: record[key] for key in shape} == shape


def test_spread_and_cost_follow_from_the_rounds() -> None:
    rounds = speed._Rounds([1.0, 2.0, 4.0, 8.0, 16.0], [[0.5, 0.5], [1.0, 1.0], [2.0, 2.0], [4.0, 4.0], [8.0, 8.0]])
    record = speed._figures(dataclasses.replace(CONFIG, speed_price_per_hour=3.6), rounds, 2, None)
    assert record["prefill_tokens_per_s"] == pytest.approx(24 / 4)
    assert record["prefill_tokens_per_s_quartiles"] == pytest.approx([24 / 8, 24 / 2])
    assert record["decode_tokens_per_s_quartiles"] == pytest.approx([4 / 8, 4 / 2])
    # 3.6 an hour is 0.001 a second; a million tokens at 6 and at 1 a second.
    assert record["prefill_cost_per_million_tokens"] == pytest.approx(1000 / 6)
    assert record["decode_cost_per_million_tokens"] == pytest.approx(1000)
    assert "decode_cost_per_million_tokens" not in speed._figures(CONFIG, rounds, 2, None)


def test_options_of_the_speed_do_not_make_scores_stale() -> None:
    timed = EvalConfig(limit=3, speed_batch=4, speed_batches=[2], speed_repeats=9, speed_price_per_hour=2.0)
    assert timed.without_speed() == EvalConfig(limit=3).without_speed()
    assert not timed.without_speed().speed
    assert timed.without_speed() != EvalConfig(limit=4).without_speed()


def test_models_take_turns_and_warm_up_rounds_are_left_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = []
    run_round = speed._run_round

    def spy(checkpoint: Checkpoint, config: EvalConfig, batch: int) -> tuple[float, list[float]]:
        order.append((checkpoint.name, batch))
        return run_round(checkpoint, config, batch)

    monkeypatch.setattr(speed, "_run_round", spy)
    other = save_tiny_model(folder.parent / "other", num_hidden_layers=2)
    found = compare_speed({"a": folder, "b": other}, dataclasses.replace(CONFIG, speed_batches=[4, 2]))
    turns = [(str(model), batch) for batch in (2, 4) for model in (folder, other)]
    assert order[:20] == turns * 5
    assert found["a"]["rounds"] == 3
    assert [shape["batch"] for shape in found["a"]["shapes"]] == [2, 4]
    assert found["a"]["shapes"][0].items() <= found["a"].items()


def test_decoding_feeds_one_token_at_a_time_and_gives_the_uncached_tokens(folder: Path) -> None:
    checkpoint = load_checkpoint(folder, device="cpu")
    seen = []
    checkpoint.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].clone()), with_kwargs=True
    )
    with torch.inference_mode():
        speed._run_round(checkpoint, CONFIG, 2)
    assert [tuple(ids.shape) for ids in seen] == [(2, 12)] + [(2, 1)] * 5
    with torch.no_grad():
        whole = torch.cat(seen, dim=1)
        greedy = checkpoint.model(input_ids=whole, use_cache=False).logits.argmax(-1)
    assert torch.equal(greedy[:, 11:16], whole[:, 12:])


def test_peak_memory_is_at_least_the_weights(folder: Path) -> None:
    weights = sum(p.nbytes for p in load_checkpoint(folder, device="cpu").model.parameters()) / 2**30
    peak = compare_speed({"a": folder}, CONFIG)["a"]["peak_gib"]
    assert peak is None or weights <= peak < weights + 0.5


def test_quantised_weights_count_as_they_are_stored(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    export(folder, tmp_path / "int8", ExportConfig(format=("int8",)))
    stored = sum(tensor.nbytes for tensor in load_file(tmp_path / "int8" / "model.safetensors").values())
    with torch.inference_mode():
        assert speed._weight_bytes(load_checkpoint(tmp_path / "int8", dtype="auto").model) == stored
    record = compare_speed({"whole": folder, "int8": tmp_path / "int8"}, CONFIG)["int8"]
    assert record["peak_gib"] is None or record["peak_gib"] >= stored / 2**30


def test_samples_are_the_greedy_continuation(folder: Path) -> None:
    checkpoint = load_checkpoint(folder, device="cpu")
    (sample,) = continuations(checkpoint, ["Once upon"], 6)
    ids = checkpoint.tokenizer("Once upon")["input_ids"]
    with torch.no_grad():
        for _ in range(6):
            ids.append(int(checkpoint.model(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == checkpoint.tokenizer.eos_token_id:
                break
    expected = checkpoint.tokenizer.decode(ids[9:], skip_special_tokens=True)
    assert sample == {"prompt": "Once upon", "continuation": expected}
