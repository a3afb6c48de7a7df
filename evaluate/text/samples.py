"""Greedy continuations of fixed prompts: to read a model's text, and to measure how alike it and its teacher write."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from compress.base.journal import Batch, Journal
from compress.base.progress import say
from compress.inference.readout import Checkpoint
from compress.model.lengths import shortest_context

Encode = Callable[[Checkpoint, str], list[int]]
"""Token ids of a prompt, as a checkpoint's tokenizer has them."""


def prompts_from_rows(checkpoint: Checkpoint, rows: NDArray[np.int64], count: int, prompt_tokens: int) -> list[str]:
    """The first `prompt_tokens` tokens, as text, of `count` rows spread evenly over `rows` [n, S]."""
    chosen = np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int)
    return [checkpoint.tokenizer.decode(rows[i, :prompt_tokens].tolist(), skip_special_tokens=True) for i in chosen]


def continuations(
    checkpoint: Checkpoint,
    prompts: Sequence[str],
    new_tokens: int,
    journal: Journal | None = None,
    encode: Encode = Checkpoint.prompt_ids,
) -> list[dict[str, str]]:
    """`[{prompt, continuation}]`: at most `new_tokens` greedy tokens after each prompt, up to the end of the text."""

    def continuation(i: int) -> str | None:
        ids = greedy_ids(checkpoint, encode(checkpoint, prompts[i]), new_tokens, context=checkpoint.context)
        return None if ids is None else str(checkpoint.tokenizer.decode(ids, skip_special_tokens=True))

    batches = [Batch([prompt, new_tokens]) for prompt in prompts]
    texts = (journal or Journal()).measure("Samples", batches, continuation, visible=False)
    pairs = zip(prompts, texts, strict=True)
    return [{"prompt": prompt, "continuation": text} for prompt, text in pairs if text is not None]


def response_similarity(
    checkpoint: Checkpoint,
    teacher: Checkpoint,
    prompts: Sequence[str],
    new_tokens: int,
    journal: Journal | None = None,
    encode: Encode = Checkpoint.prompt_ids,
) -> dict[str, Any] | None:
    """How alike model and teacher continue `prompts`, greedily, over at most `new_tokens` tokens; None without prompts.

    Means over prompts, with standard errors: `rouge_l`, the F-measure of the longest common subsequence of the two
    continuations' tokens (Lin 2004, as `rouge_score` has it); `common_prefix`, the share of the longer one that is
    the same from the start; `identical`, the share of prompts where all of it is. Both see the same tokens, those
    of the model's tokenizer, and the same of a long prompt.
    """
    context = shortest_context(model.model.config for model in (teacher, checkpoint))

    def alike(i: int) -> list[float] | None:
        ids = encode(checkpoint, prompts[i])
        theirs, ours = (greedy_ids(model, ids, new_tokens, context=context) for model in (teacher, checkpoint))
        return None if theirs is None or ours is None else list(compare_responses(theirs, ours))

    batches = [Batch([prompt, new_tokens]) for prompt in prompts]
    found = [pair for pair in (journal or Journal()).measure("Responses", batches, alike) if pair is not None]
    if not found:
        return None
    result: dict[str, Any] = {"prompts": len(found), "new_tokens": new_tokens}
    for name, column in zip(("rouge_l", "common_prefix", "identical"), np.array(found).T, strict=True):
        result[name] = float(column.mean())
        result[f"{name}_stderr"] = float(column.std(ddof=1) / math.sqrt(len(found))) if len(found) > 1 else None
    return result


def compare_responses(teacher: Sequence[int], model: Sequence[int]) -> tuple[float, float, float]:
    """(rouge_l, common_prefix, identical) of two lists of tokens, in [0, 1]; two empty ones are the same."""
    if list(teacher) == list(model):
        return 1.0, 1.0, 1.0
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], tokenizer=_Tokens())
    overlap = scorer.score(list(teacher), list(model))["rougeL"].fmeasure
    pairs = enumerate(zip(teacher, model, strict=False))
    same = next((i for i, (a, b) in pairs if a != b), min(len(teacher), len(model)))
    return float(overlap), same / max(len(teacher), len(model)), 0.0


class _Tokens:
    """For `rouge_score`, whose own tokenizer knows Latin letters only: the text is a list of tokens already."""

    def tokenize(self, text: list[int]) -> list[int]:
        return text


def with_room(checkpoint: Checkpoint, prompt: Sequence[int], new_tokens: int, *, context: int | None) -> Sequence[int]:
    """The end of a prompt that leaves `new_tokens` no room in a context of that many tokens, which is said; else it."""
    room = len(prompt) if context is None else max(1, context - new_tokens)
    if len(prompt) > room:
        say(f"Of a prompt of {len(prompt)} tokens {checkpoint.name} reads the last {room}: its context is {context}.")
    return prompt[-room:]


@torch.inference_mode()
def greedy_ids(
    checkpoint: Checkpoint, prompt: Sequence[int], new_tokens: int, *, context: int | None
) -> list[int] | None:
    """At most `new_tokens` greedy tokens after a prompt, the end of the text included; None for an empty prompt.

    Of a long prompt the end is read (see `with_room`).
    """
    tokenizer = checkpoint.tokenizer
    if not prompt:
        return None
    ids = torch.tensor([with_room(checkpoint, prompt, new_tokens, context=context)], dtype=torch.int64)
    checkpoint.check_ids(ids.numpy())
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
    found: list[int] = out[0, ids.shape[1] :].tolist()
    return found
