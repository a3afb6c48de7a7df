"""Tiny real models and tokenizers for tests, and a way to run the command line as users do."""

from pathlib import Path
from typing import Any

import pytest
import torch
from commands import Outcome, warm
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

ROOT = Path(__file__).resolve().parent.parent
SHARED_DATA = ROOT.parent / "shared" / "data"


def tiny_config(model_type: str = "llama", **overrides: Any) -> Any:
    """A config of a few thousand parameters; `overrides` replace or add fields."""
    fields: dict[str, Any] = {
        "vocab_size": 257,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "bos_token_id": 256,
        "eos_token_id": 256,
        "pad_token_id": 256,
        "tie_word_embeddings": True,
    }
    return AutoConfig.for_model(model_type, **{**fields, **overrides})


def save_tiny_model(
    folder: Path, model_type: str = "llama", *, seed: int = 0, scale: float = 0.2, **overrides: Any
) -> Path:
    """Save a random model (fp32) with a byte tokenizer; weights ~ N(0, scale^2) so that every layer matters."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(tiny_config(model_type, **overrides)).float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name and "ln_" not in name:
                parameter.normal_(0.0, scale)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """256 bytes and `<eos>` (id 256): encodes any text, decodes exactly."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)} | {"<eos>": 256}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", bos_token="<eos>", pad_token="<eos>")


def run_cli(*arguments: str, cwd: Path | None = None, **environment: str) -> Outcome:
    """Run `compress ARGUMENTS` in a process of its own with no network and one thread."""
    return warm().run((), *arguments, cwd=cwd or ROOT, **environment)


def assert_close(found: Any, expected: Any, *, rel: float) -> None:
    """Equal but for rounding in numbers, at any depth of tables."""
    if not isinstance(expected, dict):
        assert found == (pytest.approx(expected, rel=rel, abs=0) if isinstance(expected, float) else expected)
        return
    assert found.keys() == expected.keys()
    for name in expected:
        assert_close(found[name], expected[name], rel=rel)
