"""Masked language models scored: pseudo-perplexity and what they fill in, against plain loops in float64."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from encoder_world import SPECIAL, save_encoder, write_text
from helpers import save_tiny_model
from transformers import AutoModelForMaskedLM

from compress.base.disk import read_json
from compress.base.errors import UsageError
from compress.cli import cli
from compress.evaluate import EvalConfig, evaluate_model
from compress.evaluate.text.language import heldout_scores
from compress.inference.readout import load_checkpoint

MASK = SPECIAL.index("[MASK]")


@pytest.mark.parametrize(("model_type", "every"), [("bert", 0), ("modernbert", 0), ("roberta", 5), ("deberta-v2", 8)])
def test_scores_equal_a_plain_loop(model_type: str, every: int, tmp_path: Path) -> None:
    folders = [save_encoder(tmp_path / str(seed), model_type, seed=seed, layers=2) for seed in (1, 2)]
    ids = np.random.default_rng(0).integers(0, 19, (3, 14))
    model, teacher = map(load_checkpoint, folders)
    found, near = heldout_scores(model, ids, 100, teacher=teacher, batch_tokens=30, mask_every=every)

    plain = [AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.float64).eval() for folder in folders]
    losses, first, fifth, kls = [], [], [], []
    for row in torch.from_numpy(ids):
        for place in range(1, len(row)):
            if row[place] < len(SPECIAL):
                continue
            together = torch.arange(1, len(row))
            together = together[together % every == place % every] if every else torch.tensor([place])
            hidden = row.clone()
            hidden[[int(at) for at in together if row[at] >= len(SPECIAL)]] = MASK
            with torch.no_grad():
                log_q, log_p = (each(input_ids=hidden[None]).logits[0, place].log_softmax(-1) for each in plain)
            losses.append(-log_q[row[place]].item())
            rank = (log_q > log_q[row[place]]).sum()
            first.append(bool(rank == 0))
            fifth.append(bool(rank < 5))
            kls.append((log_p.exp() * (log_p - log_q)).sum().item())
    assert found["tokens"] == len(losses)
    assert found["loss_nats"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(np.mean(losses)), rel=1e-4)
    assert (found["top1_accuracy"], found["top5_accuracy"]) == (np.mean(first), np.mean(fifth))
    assert near is not None
    assert near["kl_nats"] == pytest.approx(np.mean(kls), rel=1e-4)


def test_the_command_scores_a_masked_model_and_measures_no_writing(tmp_path: Path) -> None:
    model, text = save_encoder(tmp_path / "model"), write_text(tmp_path / "text.jsonl", 30)
    asked = ["--text", str(text), "--set", "eval.heldout_seq_len=24", "--set", "eval.heldout_sequences=4"]
    done = CliRunner().invoke(cli, ["eval", str(model), *asked, "--out", str(tmp_path / "eval.json")])
    assert done.exit_code == 0, done.output
    scores = read_json(tmp_path / "eval.json")
    assert (scores["speed"], scores["samples"], scores["tasks"]) == (None, [], {})
    assert scores["heldout"]["mask_every"] == 8
    assert 0 <= scores["heldout"]["top1_accuracy"] <= scores["heldout"]["top5_accuracy"] <= 1


def test_what_masked_models_cannot_be_asked_is_refused(tmp_path: Path) -> None:
    model, text = save_encoder(tmp_path / "model"), write_text(tmp_path / "text.jsonl", 30)
    with pytest.raises(UsageError, match=r"eval\.tasks.* is for causal language models, and .*model is a masked one"):
        evaluate_model(model, EvalConfig(tasks=["arc_easy"]), text=text)
    with pytest.raises(UsageError, match=r"is a masked language model and .* is a causal language model"):
        evaluate_model(model, teacher=save_tiny_model(tmp_path / "causal"), text=text)
