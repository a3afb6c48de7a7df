"""Fewer experts: the student is the teacher whose routers never choose those that went, and they are REAP's lowest."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import byte_tokenizer, run_cli, save_tiny_model
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from compress.base.errors import InputError, UsageError
from compress.prune import ExpertsConfig, PruneConfig, RankingConfig, StorageConfig, plan_prune, prune
from compress.prune.choose.calibration import load_calibration
from compress.prune.parts import Amount

BEFORE, STAY, TOP_K = 6, 4, 2
_SMALL = {"num_experts": BEFORE, "num_experts_per_tok": TOP_K, "moe_intermediate_size": 24}
TYPES: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": BEFORE, "num_experts_per_tok": TOP_K},
    "qwen2_moe": {**_SMALL, "shared_expert_intermediate_size": 24, "decoder_sparse_step": 2},
    "qwen3_moe": {**_SMALL, "head_dim": 8, "norm_topk_prob": True, "mlp_only_layers": [1]},
    "olmoe": {"num_experts": BEFORE, "num_experts_per_tok": TOP_K},
}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = random.Random(0)
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    lines = [json.dumps({"text": " ".join(rng.choices(["ab", "cde", "fghi", "jk"], k=20))}) for _ in range(20)]
    path.write_text("\n".join(lines))
    return path


def asked(text: Path, experts: float = STAY) -> ExpertsConfig:
    return ExpertsConfig(experts=experts, calibration=str(text), calibration_tokens=256, calibration_seq_len=32)


def rows_of(text: Path, teacher: Path) -> Tensor:
    """The ids that are measured on."""
    return torch.from_numpy(load_calibration(asked(text), teacher, Amount(256, 32)).rows)


class Mixture(nn.Module):
    """A mixture of experts as its papers write it, in float64, over the weights of a transformers block. What each
    expert gives to each token is kept, and the logits of those that are `gone` are minus infinity."""

    def __init__(self, block: Any, normalised: bool, gone: list[int]) -> None:
        super().__init__()
        self.block, self.normalised, self.gone = block, normalised, gone
        self.given: list[list[float]] = [[] for _ in range(block.gate.weight.shape[0])]

    def forward(self, hidden: Tensor) -> Tensor:
        flat, block = hidden.reshape(-1, hidden.shape[-1]), self.block
        logits = flat @ block.gate.weight.T
        logits[:, self.gone] = -torch.inf
        gates, chosen = logits.softmax(-1).topk(TOP_K)
        if self.normalised:
            gates = gates / gates.sum(-1, keepdim=True)
        out = torch.zeros_like(flat)
        for token in range(len(flat)):
            for gate, expert in zip(gates[token], chosen[token].tolist(), strict=True):
                up = block.experts.gate_up_proj[expert] @ flat[token]
                half = len(up) // 2
                value = block.experts.down_proj[expert] @ (nn.functional.silu(up[:half]) * up[half:])
                out[token] += gate * value
                self.given[expert].append(float(gate * value.norm()))
        if hasattr(block, "shared_expert"):
            out = out + (flat @ block.shared_expert_gate.weight.T).sigmoid() * block.shared_expert(flat)
        return out.reshape(hidden.shape)


def in_float64(folder: Path, gone: dict[int, list[int]] | None = None) -> tuple[Any, dict[int, Mixture]]:
    """The model with blocks of ours, by layer, that leave out the experts that are `gone`."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    normalised = model.config.model_type == "mixtral" or model.config.norm_topk_prob
    blocks = {}
    for number, layer in enumerate(model.model.layers):
        if hasattr(layer.mlp, "experts"):
            layer.mlp = blocks[number] = Mixture(layer.mlp, normalised, (gone or {}).get(number, []))
    return model, blocks


def save_stacked(folder: Path, out: Path) -> None:
    """The same model as transformers keeps it in memory: a layer's experts in one tensor."""
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(out, save_original_format=False)
    byte_tokenizer().save_pretrained(out)
    assert any(name.endswith("experts.gate_up_proj") for name in load_file(out / "model.safetensors"))


@torch.no_grad()
@pytest.mark.parametrize("model_type", TYPES)
def test_the_student_is_the_teacher_without_the_experts_that_reap_scores_lowest(
    model_type: str, text: Path, tmp_path: Path
) -> None:
    teacher = save_tiny_model(tmp_path / "teacher", model_type, **TYPES[model_type])
    record = prune(teacher, tmp_path / "student", ":", experts=asked(text)).record
    found = record["experts"]
    whole, blocks = in_float64(teacher)
    ids = rows_of(text, teacher)
    logits = whole(ids).logits
    assert len(blocks) == {"qwen2_moe": 2, "qwen3_moe": 3}.get(model_type, 4)
    assert found["kept"].keys() == found["scores"].keys() == {str(layer) for layer in blocks}
    for layer, block in blocks.items():
        scores = [sum(given) / len(given) if given else 0.0 for given in block.given]
        assert found["scores"][str(layer)] == pytest.approx(scores, rel=1e-4)
        assert found["tokens"][str(layer)] == [len(given) for given in block.given]
        best = sorted(range(BEFORE), key=lambda expert: -scores[expert])[:STAY]
        assert list(found["kept"][str(layer)]) == sorted(best)
    gone = {layer: [e for e in range(BEFORE) if e not in found["kept"][str(layer)]] for layer in blocks}
    expected = in_float64(teacher, gone)[0](ids).logits
    student, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "student", dtype=torch.float64, experts_implementation="eager", output_loading_info=True
    )
    assert not any(info.values())
    torch.testing.assert_close(student.eval()(ids).logits, expected, rtol=0, atol=1e-5)  # routers round to float32
    assert (expected - logits).abs().max() > 1e-2
    assert record["check"]["passed"]
    assert record["params_after"] == sum(p.numel() for p in student.parameters()) < record["params_before"]
    save_stacked(teacher, tmp_path / "stacked")
    again = prune(tmp_path / "stacked", tmp_path / "again", ":", experts=asked(text)).record
    assert again["experts"]["kept"] == found["kept"]
    same = AutoModelForCausalLM.from_pretrained(tmp_path / "again", dtype=torch.float64)
    assert all(torch.equal(a, b) for a, b in zip(same.parameters(), student.parameters(), strict=True))


@torch.no_grad()
def test_layers_and_experts_are_dropped_together_and_cast(text: Path, tmp_path: Path) -> None:
    teacher = save_tiny_model(tmp_path / "teacher", "qwen3_moe", **TYPES["qwen3_moe"])
    save_stacked(teacher, tmp_path / "stacked")
    for source in (teacher, tmp_path / "stacked"):
        out = tmp_path / f"from-{source.name}"
        storage = StorageConfig(cast="bfloat16", max_shard_size=20_000)
        record = prune(source, out, "0,1,3", experts=asked(text, 0.5), storage=storage).record
        assert record["experts_after"] == 3
        config = AutoConfig.from_pretrained(out)
        assert (config.num_hidden_layers, config.num_experts, config.mlp_only_layers) == (3, 3, [1])
        student = AutoModelForCausalLM.from_pretrained(out, dtype=torch.bfloat16)
        whole = AutoModelForCausalLM.from_pretrained(source).bfloat16()
        kept = list(record["experts"]["kept"]["3"])
        small, large = student.model.layers[2].mlp, whole.model.layers[3].mlp
        assert torch.equal(small.experts.gate_up_proj, large.experts.gate_up_proj[kept])
        assert torch.equal(small.experts.down_proj, large.experts.down_proj[kept])
        assert torch.equal(small.gate.weight, large.gate.weight[kept])
    measured = RankingConfig(layers=3, by="magnitude")
    both = prune(teacher, tmp_path / "both", measured, experts=asked(text)).record
    assert (len(both["kept_layers"]), both["experts_after"], both["method"]) == (3, STAY, "magnitude")


def test_what_cannot_be_is_refused_by_name_and_nothing_is_left(text: Path, tmp_path: Path) -> None:
    teacher = save_tiny_model(tmp_path / "teacher", "mixtral", **TYPES["mixtral"])
    dense = save_tiny_model(tmp_path / "dense")
    fields = {"n_routed_experts": 4, "first_k_dense_replace": 1, "kv_lora_rank": 16, "q_lora_rank": 16, "n_group": 1}
    AutoConfig.for_model("deepseek_v3", **fields).save_pretrained(tmp_path / "other")

    def refused(folder: Path, expected: str, error: type[Exception], config: ExpertsConfig) -> None:
        with pytest.raises(error, match=expected):
            prune(folder, tmp_path / "out", ":", experts=config)
        assert not (tmp_path / "out").exists()

    for number in (BEFORE, BEFORE + 1, TOP_K - 1, 0.1):
        refused(teacher, f"write a number from {TOP_K} to {BEFORE - 1}", UsageError, asked(text, number))
    refused(dense, "a llama, has no experts to drop", InputError, asked(text))
    refused(teacher, "needs text: name it with --calibration", UsageError, ExpertsConfig(experts=STAY))
    command = run_cli("prune", str(tmp_path / "other"), str(tmp_path / "out"), "--experts", "3", "--dry-run")
    assert "Experts of" in command.stderr
    assert "a deepseek_v3, cannot be dropped" in command.stderr
    with pytest.raises(ValueError, match="drop `experts` of its student afterwards"):
        PruneConfig(layers=2, rank_after=1000, experts=2)
    assert plan_prune(str(teacher), ":").experts_before is None


def test_the_command_plans_drops_and_the_student_heals(text: Path, tmp_path: Path) -> None:
    teacher = save_tiny_model(tmp_path / "teacher", "olmoe", **TYPES["olmoe"])
    student = str(tmp_path / "student")
    command = ("prune", str(teacher), student, "--experts", "50%", "--calibration", str(text), "--json")
    plan = json.loads(run_cli(*command, "--dry-run").stdout)
    assert not Path(student).exists()
    record = json.loads(run_cli(*command).stdout)
    assert (plan["kept_layers"], plan["experts_after"]) == ([0, 1, 2, 3], 3)
    assert plan["params_after"] == record["params_after"]
    healed = run_cli(
        "distill", "--teacher", str(teacher), "--student", student, "--data", str(text), "--out", str(tmp_path / "run"),
        "--set", "data.seq_len=32", "--set", "data.heldout_sequences=4", "--set", "distill.epochs=6",
        "--set", "distill.batch_tokens=128", "--set", "distill.lr=1e-3", "--set", "distill.alpha=1", "--json",
    )  # fmt: skip
    assert healed.returncode == 0, healed.stderr
    rows = [json.loads(line) for line in (tmp_path / "run" / "train" / "metrics.jsonl").read_text().splitlines()]
    heldout = [row["heldout_kl"] for row in rows if "heldout_kl" in row]
    assert heldout[-1] < heldout[0]
    assert AutoConfig.from_pretrained(tmp_path / "run" / "student").num_experts == 3
