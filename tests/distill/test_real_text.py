"""Real text with a real tokenizer, through the command, on the optional shared data."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import SHARED_DATA, run_cli
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from compress.data import TokenStore

VOCABULARY = 50304
SETTINGS = (
    "data.seq_len=128",
    "data.heldout_sequences=64",
    "distill.batch_tokens=1024",
    "distill.lr=2e-2",
    "distill.heldout_every=0.2",
    "distill.heldout_sequences=64",
)


def random_model(folder: Path) -> Path:
    """A Llama of 1.7M parameters with the real tokenizer; 1.6M of them are the embeddings of its vocabulary."""
    tokenizer_file = SHARED_DATA / "tokenizers" / "gpt-neox" / "tokenizer.json"
    PreTrainedTokenizerFast(tokenizer_file=str(tokenizer_file), eos_token="<|endoftext|>").save_pretrained(folder)
    config = AutoConfig.for_model(
        "llama", vocab_size=VOCABULARY, hidden_size=32, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=128, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    return folder


def unigram_loss(store: TokenStore) -> float:
    """Nats a held-out token of the best context-free model of the training rows: add-one counts, float64."""
    counts = np.bincount(store.rows(range(store.num_rows)).ravel(), minlength=VOCABULARY) + 1.0
    log_probability = np.log(counts / counts.sum())
    return float(-log_probability[store.heldout()[:, 1:]].mean())


@pytest.mark.slow
def test_training_on_real_text_learns_more_than_the_frequencies_of_words(tmp_path: Path) -> None:
    """Starts at ln V, as random weights must; ends below the best model that ignores context; says so truly."""
    if not (SHARED_DATA / "corpus").is_dir():
        pytest.skip("the optional ../shared/data/corpus is not here")
    student = random_model(tmp_path / "init")
    settings = [part for value in SETTINGS for part in ("--set", value)]
    source = ["--data", str(SHARED_DATA / "corpus"), "--tokens", "160k"]
    run = tmp_path / "run"
    done = run_cli("distill", "--student", str(student), "--alpha", "0", *source, "--out", str(run), *settings)
    assert done.returncode == 0, done.stderr

    rows = [json.loads(line) for line in (run / "train" / "metrics.jsonl").read_text().splitlines()]
    heldout = [row["heldout_hard"] for row in rows if "heldout_hard" in row]
    assert heldout[0] == pytest.approx(math.log(VOCABULARY), abs=0.1)
    store = TokenStore.open(run / "data")
    assert heldout[-1] < unigram_loss(store) - 0.1
    model = AutoModelForCausalLM.from_pretrained(run / "student", dtype=torch.float32)
    ids = torch.from_numpy(store.heldout())
    with torch.no_grad():
        losses = [model(input_ids=batch, labels=batch).loss.item() for batch in ids.split(8)]
    assert heldout[-1] == pytest.approx(np.mean(losses), rel=1e-3)
    assert json.loads((run / "student" / "distill.json").read_text())["teacher"] is None
