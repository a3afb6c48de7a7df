"""Tiny masked language models of real classes with a tokenizer as encoders have it, and text that they can learn."""

import json
import random
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForMaskedLM, PreTrainedTokenizerFast

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
"""With the ids 0 to 4."""
NAMES = ("ann", "bob", "cat", "dan", "eve", "fay", "gus", "hal")
WORDS = (*NAMES, "saw", "and", "went", "home", "by", "bus", "train", ".")
VOCABULARY = (*SPECIAL, *WORDS)
CLASSES: dict[str, dict[str, Any]] = {
    "bert": {},
    "roberta": {"max_position_embeddings": 130},
    "distilbert": {"dim": 32, "n_layers": 4, "n_heads": 4, "hidden_dim": 64},
    "modernbert": {"local_attention": 8, "cls_token_id": 2, "sep_token_id": 3},
    "electra": {"embedding_size": 16},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False},
}
"""What each model type needs beside the usual sizes."""


def save_encoder(folder: Path, model_type: str = "bert", *, seed: int = 0, layers: int = 4, **changes: Any) -> Path:
    """Save a random masked LM (fp32) with its tokenizer; every layer matters, and none drowns the rest."""
    torch.manual_seed(seed)
    fields = {
        "vocab_size": len(VOCABULARY),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 3,
    }
    if model_type == "distilbert":
        fields = {name: fields[name] for name in ("vocab_size", "max_position_embeddings", "pad_token_id")}
        changes = {"n_layers": layers, **changes}
    config = AutoConfig.for_model(model_type, **{**fields, **CLASSES[model_type], **changes})
    model = AutoModelForMaskedLM.from_config(config).float()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    encoder_tokenizer().save_pretrained(folder)
    return folder


def encoder_tokenizer() -> PreTrainedTokenizerFast:
    """A word a token, `[CLS] text [SEP]`, and no BOS or EOS token."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    ids = {word: number for number, word in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    roles = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **roles)


def write_text(path: Path, documents: int = 250) -> Path:
    """Sentences in which most words follow from those around them, one JSON document a line."""
    rng = random.Random(0)
    lines = []
    for _ in range(documents):
        first, second, third = rng.sample(NAMES, 3)
        how = "bus" if NAMES.index(first) % 2 else "train"
        lines.append(f"{first} saw {second} and {third} and {first} went home by {how} .")
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    return path
