"""The repair of a cut: exact where the dropped block is linear, least squares elsewhere, refused where it cannot be."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import save_tiny_model
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from compress.base.disk import sha256_file
from compress.base.errors import InputError
from compress.model.blocks import block_outputs
from compress.prune import RepairConfig, prune
from compress.prune.least_squares import RIDGES
from compress.prune.repair import Seam, seams
from compress.prune.streams import Stream

ROW = 32
DOWN = "model.layers.{}.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repair")
    rng = random.Random(0)
    lines = [json.dumps({"text": "".join(rng.choices("abcdefgh ,.", k=25))}) for _ in range(320)]
    (folder / "text.jsonl").write_text("\n".join(lines) + "\n")
    save_tiny_model(folder / "teacher")
    return folder


def settings(place: Path, **options: float) -> RepairConfig:
    shape = {"repair_tokens": 4096, "calibration_seq_len": ROW}
    return RepairConfig(calibration=str(place / "text.jsonl"), **{**shape, **options})  # type: ignore[arg-type]


def states(folder: Path, layer: int, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Input of a layer's down_proj and the layer's output, float64."""
    return states_of(AutoModelForCausalLM.from_pretrained(folder), layer, ids)


def states_of(model: Any, layer: int, ids: Tensor) -> tuple[Tensor, Tensor]:
    seen: list[Tensor] = []
    block = model.model.layers[layer]
    hooks = [
        block.mlp.down_proj.register_forward_pre_hook(lambda module, args: seen.append(args[0])),
        block.register_forward_hook(lambda module, args, output: seen.append(output)),
    ]
    with torch.no_grad():
        model(ids)
    for hook in hooks:
        hook.remove()
    return seen[0].flatten(0, 1).double(), seen[1].flatten(0, 1).double()


def test_seams_are_the_runs_of_dropped_layers_that_a_kept_one_precedes() -> None:
    assert seams((0, 3, 4), 7) == [Seam(0, (1, 2)), Seam(2, (5, 6))]
    assert seams((1, 2), 3) == []


def test_the_repair_is_the_ridge_solution_and_changes_one_tensor(place: Path, tmp_path: Path) -> None:
    plain = prune(place / "teacher", tmp_path / "plain", "0,1,3")
    mended = prune(place / "teacher", tmp_path / "mended", "0,1,3", repair=settings(place, repair_ridge=0.01))
    before, after = (load_file(result.out / "model.safetensors") for result in (plain, mended))
    assert {name for name in before if not torch.equal(before[name], after[name])} == {DOWN.format(1)}
    record = mended.record["repair"]
    rows = record["calibration"]["rows"]
    assert record["heldout_rows"] == rows // 10
    ids = torch.tensor(_token_ids(place)[: rows * ROW]).reshape(rows, ROW)[: rows - rows // 10]
    inputs, given = states(plain.out, 1, ids)
    wanted = states(place / "teacher", 2, ids)[1]
    gram = inputs.T @ inputs
    change = torch.linalg.solve(
        gram + 0.01 * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64), inputs.T @ (wanted - given)
    )
    found = (after[DOWN.format(1)] - before[DOWN.format(1)]).double().T
    assert torch.allclose(found, change, atol=1e-4 * change.abs().max().item())
    gap = (wanted - given - inputs @ change).square().sum() / wanted.square().sum()
    assert record["blocks"][0]["gap_after"] == pytest.approx(gap.item(), rel=1e-3)
    assert record["blocks"][0]["gap_after"] < record["blocks"][0]["gap_before"]
    assert mended.record["sha256"]["model.safetensors"] == sha256_file(mended.out / "model.safetensors")
    assert mended.check.passed
    assert "repaired: loss" in mended.describe()


def test_several_cuts_are_repaired_as_by_whole_passes_in_float64(place: Path, tmp_path: Path) -> None:
    """Each on what the student says with those before it repaired, as two models run from the start for each would."""
    teacher = save_tiny_model(place / "deep", num_hidden_layers=7)
    plain = prune(teacher, tmp_path / "plain", "0,2,4,6", check=False).out
    mended = prune(teacher, tmp_path / "mended", "0,2,4,6", check=False, repair=settings(place, repair_ridge=0.01))
    rows = mended.record["repair"]["calibration"]["rows"]
    ids = torch.tensor(_token_ids(place)[: rows * ROW]).reshape(rows, ROW)[: rows - rows // 10]
    model, after = AutoModelForCausalLM.from_pretrained(plain).double(), load_file(mended.out / "model.safetensors")
    for block, dropped in ((0, 1), (1, 3), (2, 5)):
        inputs, given = states_of(model, block, ids)
        gap = states(teacher, dropped, ids)[1] - given
        gram = inputs.T @ inputs
        pull = 0.01 * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
        change = torch.linalg.solve(gram + pull, inputs.T @ gap).T
        weight = model.model.layers[block].mlp.down_proj.weight
        found = after[DOWN.format(block)].double() - weight
        assert torch.allclose(found, change, atol=2e-3 * change.abs().max().item())
        with torch.no_grad():
            weight += change


def test_the_ridge_left_to_itself_errs_least_on_rows_that_the_fit_has_not_seen(place: Path, tmp_path: Path) -> None:
    plain = prune(place / "teacher", tmp_path / "plain", "0,1,3", check=False)
    record = prune(place / "teacher", tmp_path / "mended", "0,1,3", repair=settings(place)).record["repair"]
    assert record["ridge"] == "auto"
    rows = record["calibration"]["rows"]
    ids = torch.tensor(_token_ids(place)[: rows * ROW]).reshape(rows, ROW)[: rows - rows // 10]
    chosen = torch.arange(len(ids)) % 10 == 0
    fit, heldout = (
        (*states(plain.out, 1, part), states(place / "teacher", 2, part)[1]) for part in (ids[~chosen], ids[chosen])
    )

    def error(ridge: float) -> float:
        gram = fit[0].T @ fit[0]
        pull = ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
        change = torch.linalg.solve(gram + pull, fit[0].T @ (fit[2] - fit[1]))
        left, length = heldout[2] - heldout[1] - heldout[0] @ change, heldout[2].norm(dim=-1)
        return float((left.norm(dim=-1) / length).square().sum())

    assert error(record["blocks"][0]["ridge"]) <= min(map(error, RIDGES)) * (1 + 1e-5)


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "gpt2", "qwen3"])
def test_text_that_stops_after_each_block_says_what_it_says_in_one_pass(tmp_path: Path, model_type: str) -> None:
    fields = {"head_dim": 8, "sliding_window": 8} if model_type == "gemma3_text" else {}
    model = AutoModelForCausalLM.from_pretrained(save_tiny_model(tmp_path / "m", model_type, **fields)).eval()
    batches = list(torch.randint(200, (5, 20), generator=torch.Generator().manual_seed(0)).split(2))
    with torch.no_grad():
        stream = Stream(model, batches)
        assert stream.resumes
        for block in (1, 2):
            with block_outputs(model, [block]) as whole:
                for ids, found in zip(batches, stream.outputs(block, again=block == 1), strict=True):
                    model(ids, use_cache=False)
                    assert torch.equal(found, whole[block])


def test_a_model_whose_blocks_share_more_than_the_state_is_repaired_by_whole_passes(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    streamed = prune(place / "teacher", tmp_path / "a", "0,2", check=False, repair=settings(place)).out
    monkeypatch.setattr(Stream, "_may_stop", lambda self: False)
    in_full = prune(place / "teacher", tmp_path / "b", "0,2", check=False, repair=settings(place)).out
    assert sha256_file(streamed / "model.safetensors") == sha256_file(in_full / "model.safetensors")


def test_dropping_blocks_that_do_nothing_leaves_nothing_to_repair(place: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(place / "teacher")
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.weight.zero_()
        model.model.layers[1].mlp.down_proj.weight.zero_()
    model.save_pretrained(tmp_path / "idle")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "idle" / name).write_bytes((place / "teacher" / name).read_bytes())
    record = prune(tmp_path / "idle", tmp_path / "student", "0,2,3", repair=settings(place)).record["repair"]
    assert record["blocks"][0]["gap_before"] == pytest.approx(0, abs=1e-12)
    assert record["loss_nats_after"] == pytest.approx(record["loss_nats_teacher"], abs=1e-6)


def test_the_same_repair_gives_the_same_bytes(place: Path, tmp_path: Path) -> None:
    first, second = (prune(place / "teacher", tmp_path / n, "0,3", repair=settings(place)) for n in "ab")
    assert first.record["sha256"] == second.record["sha256"]


def test_a_block_whose_end_cannot_take_the_change_is_refused_by_name(place: Path, tmp_path: Path) -> None:
    for model_type, name in (("gemma2", "Gemma2DecoderLayer"), ("gpt2", "GPT2Block")):
        teacher = save_tiny_model(tmp_path / model_type, model_type, max_position_embeddings=256)
        with pytest.raises(InputError, match=name):
            prune(teacher, tmp_path / "student", "0,3", repair=settings(place))
    with pytest.raises(InputError, match="nothing to repair"):
        prune(place / "teacher", tmp_path / "student", "2,3", repair=settings(place))
    assert not (tmp_path / "student").exists()


def _token_ids(place: Path) -> list[int]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(place / "teacher")
    texts = [json.loads(line)["text"] for line in (place / "text.jsonl").read_text().splitlines()]
    return [token for text in texts for token in (*tokenizer(text)["input_ids"], 256)]
