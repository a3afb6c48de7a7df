"""A teacher to be trained from scratch: its config, and its random start."""

from pathlib import Path
from typing import Any

from compress.base.errors import UsageError, reason_of
from compress.model.load import load_tokenizer, no_transformers_bars
from compress.model.parts import why_no_model
from compress.run.sections import ScratchTeacher


def scratch_config(architecture: dict[str, Any]) -> Any:
    """The `PretrainedConfig` of a teacher to be trained from scratch.

    Raises:
        UsageError: no `model_type`, one that transformers does not know, or fields that make no config.
    """
    from transformers import AutoConfig

    fields = dict(architecture)
    try:
        return AutoConfig.for_model(fields.pop("model_type"), **fields)
    except KeyError as error:
        raise UsageError("teacher.scratch.architecture needs a `model_type`, e.g. llama.") from error
    except Exception as error:
        raise UsageError(f"teacher.scratch.architecture: {reason_of(error)}") from error


def check_vocabulary(scratch: ScratchTeacher, config: Any, tokenizer: Any) -> None:
    """Refuse an architecture without a row for each token.

    Raises:
        UsageError: its vocabulary is smaller than the tokenizer's.
    """
    if config.vocab_size < len(tokenizer):
        raise UsageError(
            f"teacher.scratch.architecture.vocab_size = {config.vocab_size} is too small for the tokenizer in "
            f"{scratch.tokenizer}, which has {len(tokenizer)} tokens."
        )


def initialise(scratch: ScratchTeacher, out: Path) -> None:
    """Write a random model (fp32, seeded) of the given architecture, with its tokenizer.

    Raises:
        UsageError: the architecture makes no causal LM, or its vocabulary is smaller than the tokenizer's.
    """
    import torch
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer(Path(scratch.tokenizer))
    config = scratch_config(scratch.architecture)
    check_vocabulary(scratch, config, tokenizer)
    config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    config.pad_token_id = tokenizer.pad_token_id
    torch.manual_seed(scratch.train.seed)
    try:
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    except Exception as error:
        raise UsageError(f"teacher.scratch.architecture makes no causal LM: {why_no_model(error)}") from error
    with no_transformers_bars():
        model.save_pretrained(out)
    tokenizer.save_pretrained(out)
