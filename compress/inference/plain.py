"""Answers by transformers' own generation, with tokens that a function of ours takes."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from compress.inference.decoding import Choose
from compress.inference.tree import Ids


@torch.inference_mode()
def generate_plainly(
    model: Any, prompts: Sequence[Ids], new_tokens: int, ends: set[int], choose: Choose
) -> list[list[int]]:
    """The tokens after each of the prompts, which are padded on the left: `new_tokens`, or up to the first of `ends`,
    which is the last of its answer.

    `choose` is asked for one token more of each answer each time, of those that have ended too. What the model's
    generation config says of penalties and the like is left out: the logits are the model's own.
    """
    longest = max(map(len, prompts))
    # where a prompt ends with it, transformers says that prompts are padded on the right
    pad = min(set(range(len(prompts) + 1)) - {int(prompt[-1]) for prompt in prompts})
    pad %= model.get_input_embeddings().num_embeddings
    ids = torch.full((len(prompts), longest), pad, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.from_numpy(prompt)
        mask[row, longest - len(prompt) :] = 1
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        out = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            generation_config=GenerationConfig(
                max_new_tokens=new_tokens, do_sample=False, eos_token_id=sorted(ends), pad_token_id=pad
            ),
            logits_processor=LogitsProcessorList([_Chosen(choose)]),
        )
    finally:
        model.generation_config = own
    return [_until(answer, ends) for answer in out[:, longest:].tolist()]


class _Chosen(LogitsProcessor):  # type: ignore[misc]
    """Leaves of the logits [B, V] those of the tokens that a function takes."""

    def __init__(self, choose: Callable[[Tensor, Sequence[int]], Tensor]) -> None:
        self._choose = choose

    def __call__(self, _: Tensor, scores: Tensor) -> Tensor:
        tokens = self._choose(scores.float(), range(len(scores)))
        return torch.full_like(scores, -torch.inf).scatter(1, tokens[:, None], 0.0)


def _until(answer: list[int], ends: set[int]) -> list[int]:
    """An answer without what pads it after its end."""
    place = next((i for i, token in enumerate(answer) if token in ends), len(answer) - 1)
    return answer[: place + 1]
