"""What the evaluation benchmark runs on: a small Llama-3.2-1B, and long endings in HellaSwag's format."""

import json
import random
import re
import sys
from pathlib import Path

import pyarrow.parquet as pq
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

WIDTH, LAYERS, VOCABULARY, LARGE_VOCABULARY = 256, 4, 4008, 128256
"""Llama-3.2-1B's width / 8, layers / 4 and vocabulary / 32: its 3.7 : 1 of body and head."""
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")


def make_model(folder: Path, corpus: Path, *, vocabulary: int = VOCABULARY, layers: int = LAYERS) -> Path:
    """Random weights, a byte-level BPE of `VOCABULARY` tokens trained on the corpus; `folder` is made once."""
    if (folder / "config.json").is_file():
        return folder
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=WIDTH // 8,
        max_position_embeddings=131072,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = AutoModelForCausalLM.from_config(config).float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.normal_(0.0, 0.08)
    model.save_pretrained(folder)
    _tokenizer(folder.parent / "tokenizer.json", corpus).save_pretrained(folder)
    return folder


def _tokenizer(path: Path, corpus: Path) -> PreTrainedTokenizerFast:
    if not path.is_file():
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=["<s>"], initial_alphabet=sorted(alphabet))
        tokenizer.train_from_iterator((text[:20000] for text in _texts(corpus)), trainer)
        tokenizer.save(str(path))
    return PreTrainedTokenizerFast(tokenizer_file=str(path), bos_token="<s>", eos_token="<s>", pad_token="<s>")


def make_endings(root: Path, corpus: Path, items: int = 1000) -> None:
    """`root/Rowan/hellaswag` in HellaSwag's columns: two sentences of a text, and four sentences that may follow.

    The right ending is the text's own next sentence, the others are those of other texts.
    """
    path = root / "Rowan" / "hellaswag" / "validation.jsonl"
    if path.is_file():
        return
    rng = random.Random(0)
    passages = []
    for text in _texts(corpus):
        sentences = [s for s in _SENTENCE.split(" ".join(text.split())) if 12 <= len(s.split()) <= 45]
        passages += [sentences[at : at + 3] for at in range(0, len(sentences) - 3, 40)]
    passages = rng.sample(passages, items)
    rows = []
    for number, passage in enumerate(passages):
        label = rng.randrange(4)
        endings = [other[2] for other in rng.sample(passages, 4)]
        endings[label] = passage[2]
        rows.append(
            {"ind": number, "activity_label": "Reading", "ctx_a": passage[0], "ctx_b": passage[1],
             "ctx": " ".join(passage[:2]), "endings": endings, "source_id": f"text~{number}", "split": "val",
             "split_type": "indomain", "label": str(label)}
        )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    for split in ("train", "validation"):
        path.with_name(f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _texts(corpus: Path) -> list[str]:
    files = sorted(corpus.glob("*.parquet"))
    if not files:
        sys.exit(f"{corpus} has no parquet files: give a folder of text with --corpus.")
    return [text for file in files for text in pq.read_table(file, columns=["text"])["text"].to_pylist()]
