"""Real pretrained teachers (see real_teachers.py) read their text as they were trained to."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from helpers import SHARED_DATA
from real_teachers import real_teacher
from transformers import AutoModelForCausalLM, AutoTokenizer

from compress.data import DataConfig, prepare
from compress.evaluate import EvalConfig, evaluate_model
from compress.model.framing import Framing

pytestmark = pytest.mark.slow


def plain_loss(folder: Path, rows: Any) -> float:
    """transformers' own loss on rows of ids."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return float(np.mean([float(model(ids, labels=ids).loss) for ids in torch.as_tensor(rows)[:, None]]))


def test_gemma_reads_rows_after_bos(tmp_path: Path) -> None:
    gemma = real_teacher("gemma")
    config = DataConfig(dataset=str(SHARED_DATA / "corpus"), tokens="2k", seq_len=129, heldout_sequences=8)
    store = prepare(config, gemma, tmp_path / "store", visible=False)
    bos = AutoTokenizer.from_pretrained(gemma).bos_token_id
    assert store.framing == Framing((bos,), (bos,))
    rows = store.heldout()
    found = evaluate_model(gemma, EvalConfig(speed=False, samples=0, responses=0, device="cpu"), text=store.path)
    loss = found["heldout"]["loss_nats"]
    assert loss == pytest.approx(plain_loss(gemma, rows), abs=0.02)
    assert plain_loss(gemma, rows[:, 1:]) - loss > 1  # the same rows without their BOS
    assert (store.rows(range(store.num_rows))[:, 0] == bos).all()


def test_a_llama_without_bos_is_given_none(tmp_path: Path) -> None:
    smollm2 = real_teacher("smollm2")
    config = DataConfig(dataset=str(SHARED_DATA / "corpus"), tokens="20k", seq_len=128, heldout_sequences=0)
    store = prepare(config, smollm2, tmp_path / "store", visible=False)
    assert store.framing == Framing()
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    files = sorted((SHARED_DATA / "corpus").glob("*.parquet"))
    texts = pq.read_table(files[0], columns=["text"])["text"].to_pylist()[:40]
    stream = [i for text in texts for i in (*tokenizer(text).input_ids, tokenizer.eos_token_id)]
    assert store.rows(range(store.num_rows)).ravel().tolist() == stream[: store.num_rows * 128]
