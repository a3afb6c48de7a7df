"""`document_mask`: packed documents are each as if run alone, and models that cannot do it are refused by name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from distill_world import SEQ_LEN, World, losses_of, setting_of
from helpers import save_tiny_model, tiny_config
from transformers import AutoModelForCausalLM

from compress.base.errors import UsageError
from compress.data import TokenStore
from compress.distill import DistillConfig
from compress.distill.rows.documents import (
    check_isolation,
    document_positions,
    next_tokens,
    packed_hidden_states,
    starts_after_eos,
)
from compress.distill.rows.source import packed

Options = Callable[..., DistillConfig]

EOS = 256
ROWS = np.array(
    [
        [5, 9, 3, 7, 8, 2, EOS, 4, 4, 1, EOS, EOS, 6, 30, 31, 32],
        [EOS, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, EOS, 23, 24],
    ]
)
DOCUMENTS = [
    [5, 9, 3, 7, 8, 2, EOS], [4, 4, 1, EOS], [EOS], [6, 30, 31, 32],
    [EOS], [11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, EOS], [23, 24],
]  # fmt: skip


def exact_model(model_type: str, attention: str, seed: int = 0, **fields: Any) -> Any:
    torch.manual_seed(seed)
    config = tiny_config(model_type, num_hidden_layers=2, **fields)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0.0, 0.2)
    return model


def test_positions_start_anew_and_nothing_predicts_across() -> None:
    rows = np.array([[7, EOS, 8, 9, EOS, EOS, 3], [EOS, 1, 2, 3, 4, 5, EOS]])
    assert document_positions(starts_after_eos(rows, EOS)).tolist() == [[0, 1, 0, 1, 2, 0, 0], [0, 0, 1, 2, 3, 4, 5]]
    assert next_tokens(rows, starts_after_eos(rows, EOS)).tolist() == [
        [EOS, -100, 9, EOS, -100, -100],
        [-100, 2, 3, 4, 5, EOS],
    ]
    assert next_tokens(rows).tolist() == rows[:, 1:].tolist()


@pytest.mark.parametrize(
    ("model_type", "attention", "fields"),
    [
        ("llama", "eager", {}),
        ("llama", "sdpa", {}),
        ("qwen2", "sdpa", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
        ("qwen3", "eager", {"head_dim": 8}),
        ("gemma2", "eager", {"head_dim": 8, "sliding_window": 4, "final_logit_softcapping": 3.0}),
        ("gemma3_text", "sdpa", {"head_dim": 8, "sliding_window": 4, "sliding_window_pattern": 2}),
        ("gpt2", "eager", {}),
        ("gpt2", "sdpa", {}),
    ],
)  # fmt: skip
def test_packed_documents_equal_each_alone(
    options: Options, tmp_path: Path, model_type: str, attention: str, fields: dict[str, Any]
) -> None:
    """Losses, gradients and hidden states against dense float64 losses of one document at a time.

    Whatever the dtype, transformers takes eager softmax and Gemma norms in fp32.
    """
    rounded = attention == "eager" or model_type.startswith("gemma")
    near = {"rtol": 1e-4, "atol": 1e-5} if rounded else {"rtol": 1e-7, "atol": 1e-10}
    config = options(alpha=0.7, temperature=2.0, micro_batch_rows=2)
    teacher = exact_model(model_type, attention, seed=1, **fields).requires_grad_(False)
    student = exact_model(model_type, attention, seed=2, **fields)
    losses = losses_of(config, student, teacher, tmp_path)
    terms = losses.backward(losses.share(packed(ROWS, np.arange(2), starts_after_eos(ROWS, EOS))), setting_of(config))
    found = torch.stack([terms["soft"].raw, terms["hard"].raw])
    gradients = {name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None}

    student.zero_grad()
    soft = torch.zeros((), dtype=torch.float64)
    hard = torch.zeros((), dtype=torch.float64)
    count = sum(len(document) - 1 for document in DOCUMENTS)
    for document in DOCUMENTS:
        ids = torch.tensor([document])
        z, z_teacher = (m(ids, use_cache=False).logits[0, :-1] for m in (student, teacher))
        hard = hard + torch.nn.functional.cross_entropy(z, ids[0, 1:], reduction="sum") / count
        log_q, log_p = torch.log_softmax(z / 2, -1), torch.log_softmax(z_teacher / 2, -1)
        soft = soft + 4 * torch.nn.functional.kl_div(log_q, log_p, log_target=True, reduction="sum") / count
    (0.7 * soft + 0.3 * hard).backward()

    torch.testing.assert_close(found, torch.stack([soft, hard]).detach(), **near)
    expected = {name: p.grad for name, p in student.named_parameters() if p.grad is not None}
    torch.testing.assert_close(gradients, expected, **near)
    positions = torch.from_numpy(document_positions(starts_after_eos(ROWS, EOS)))
    hidden = packed_hidden_states(student, torch.from_numpy(ROWS), positions).flatten(0, 1)
    alone = [student.base_model(torch.tensor([d]), use_cache=False).last_hidden_state[0] for d in DOCUMENTS]
    torch.testing.assert_close(hidden, torch.cat(alone), **near)
    check_isolation(student, model_type)


def test_rows_joined_for_flash_attention_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flash attention takes packed documents in one row: the joining is tested with plain attention."""
    model = exact_model("llama", "eager")
    rows, positions = torch.from_numpy(ROWS), torch.from_numpy(document_positions(starts_after_eos(ROWS, EOS)))
    expected = packed_hidden_states(model, rows, positions)
    shapes: list[torch.Size] = []
    model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    monkeypatch.setattr("compress.distill.rows.documents._takes_one_row", lambda model: True)
    torch.testing.assert_close(packed_hidden_states(model, rows, positions), expected)
    assert shapes == [torch.Size([1, ROWS.size])]


@pytest.mark.parametrize("model_type", ["opt", "bloom", "mamba"])
def test_models_that_mix_documents_are_refused_by_name(model_type: str) -> None:
    """OPT's masks ignore positions, Bloom counts them from the attention mask, Mamba has no mask at all."""
    fields = {"word_embed_proj_dim": 32, "ffn_dim": 64} if model_type == "opt" else {}
    with pytest.raises(UsageError, match=r"document_mask: true cannot be had with the/student \(\w+ForCausalLM\)"):
        check_isolation(exact_model(model_type, "eager", **fields), "the/student")


@pytest.mark.filterwarnings("ignore")
def test_a_run_measures_documents_alone(world: World, options: Options) -> None:
    student = save_tiny_model(world.root / "llama", seed=3, scale=0.1, num_hidden_layers=2)
    world.run("run", options(document_mask=True, alpha=0.0, tokens=4 * SEQ_LEN), student=student, teacher=None)
    model = AutoModelForCausalLM.from_pretrained(student)
    total, count = 0.0, 0
    for row in TokenStore.open(world.data).heldout(6):
        ends = [int(i) + 1 for i in np.flatnonzero(row == EOS)]
        for document in np.split(row, ends):
            if len(document) > 1:
                ids = torch.from_numpy(document)[None]
                with torch.no_grad():
                    total += float(model(ids, labels=ids).loss) * (len(document) - 1)
                count += len(document) - 1
    assert world.metrics("run")[0]["heldout_hard"] == pytest.approx(total / count, rel=1e-5)
    mamba = save_tiny_model(world.root / "mamba", "mamba", seed=3, scale=0.1)
    with pytest.raises(UsageError, match="mamba"):
        world.run("refused", options(document_mask=True), student=mamba)
