"""Greedy continuations of fixed prompts, to read a model's text beside its teacher's."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from compress.evaluate.checkpoint import Checkpoint
from compress.evaluate.journal import Batch, Journal


def prompts_from_rows(checkpoint: Checkpoint, rows: NDArray[np.int64], count: int, prompt_tokens: int) -> list[str]:
    """The first `prompt_tokens` tokens, as text, of `count` rows spread evenly over `rows` [n, S]."""
    chosen = np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int)
    return [checkpoint.tokenizer.decode(rows[i, :prompt_tokens].tolist(), skip_special_tokens=True) for i in chosen]


@torch.inference_mode()
def continuations(
    checkpoint: Checkpoint, prompts: Sequence[str], new_tokens: int, journal: Journal | None = None
) -> list[dict[str, str]]:
    """`[{prompt, continuation}]`: at most `new_tokens` greedy tokens after each prompt, up to the end of the text."""
    tokenizer = checkpoint.tokenizer

    def continuation(i: int) -> str | None:
        ids = tokenizer(prompts[i], return_tensors="pt")["input_ids"]
        if ids.shape[1] == 0:
            return None
        out = checkpoint.model.generate(
            input_ids=ids.to(checkpoint.device),
            attention_mask=torch.ones_like(ids).to(checkpoint.device),
            max_new_tokens=new_tokens,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
        )
        text: str = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
        return text

    batches = [Batch([prompt, new_tokens]) for prompt in prompts]
    texts = (journal or Journal()).measure("Samples", batches, continuation, visible=False)
    pairs = zip(prompts, texts, strict=True)
    return [{"prompt": prompt, "continuation": text} for prompt, text in pairs if text is not None]
