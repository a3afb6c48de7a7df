"""Greedy continuations of fixed prompts, to read a model's text beside its teacher's."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from compress.evaluate.checkpoint import Checkpoint


def prompts_from_rows(checkpoint: Checkpoint, rows: NDArray[np.int64], count: int, prompt_tokens: int) -> list[str]:
    """The first `prompt_tokens` tokens, as text, of `count` rows spread evenly over `rows` [n, S]."""
    chosen = np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int)
    return [checkpoint.tokenizer.decode(rows[i, :prompt_tokens].tolist(), skip_special_tokens=True) for i in chosen]


@torch.inference_mode()
def continuations(checkpoint: Checkpoint, prompts: Sequence[str], new_tokens: int) -> list[dict[str, str]]:
    """`[{prompt, continuation}]`: at most `new_tokens` greedy tokens after each prompt, up to the end of the text."""
    tokenizer, samples = checkpoint.tokenizer, []
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        if ids.shape[1] == 0:
            continue
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
        text = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
        samples.append({"prompt": prompt, "continuation": text})
    return samples
