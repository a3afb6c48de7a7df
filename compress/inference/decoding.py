"""Greedy decoding of a batch of prompts: what they share is prefilled once, and a finished answer leaves the batch."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from compress.base.signals import check_interrupt
from compress.inference.planning import Job
from compress.inference.prefix_cache import KeyValues, TreeModel, attention_mask
from compress.inference.readout import Checkpoint
from compress.inference.tree import Ids, build_tree


def end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """Tokens that end an answer: the tokenizer's end of text, and what the model's generation config names."""
    named = model.generation_config.eos_token_id
    named = [named] if isinstance(named, int) else named or []
    return {token for token in (tokenizer.eos_token_id, *named) if token is not None}


class Stops:
    """When an answer ends: at an end-of-text token, or once its text has one of the stop strings."""

    def __init__(self, tokenizer: Any, strings: Sequence[str], end_tokens: set[int]) -> None:
        self._tokenizer = tokenizer
        self._strings = list(strings)
        self._end_tokens = end_tokens
        self._window = max((len(string.encode()) for string in strings), default=0) + 4

    def __call__(self, answer: Sequence[int]) -> bool:
        """Whether the answer, which did not end a token ago, does now."""
        if answer[-1] in self._end_tokens:
            return True
        # A token has a byte or more of text: a stop string that the last one completes lies in the window. The window
        # may begin within a character, so it only says where to look.
        return self._occur(answer[-self._window :]) and self._occur(answer)

    def _occur(self, tokens: Sequence[int]) -> bool:
        text = self._tokenizer.decode(tokens)
        return any(string in text for string in self._strings)


Choose = Callable[[Tensor, Sequence[int]], Tensor]
"""Takes tokens [B] of logits [B, V], for the answers of these numbers, in the order in which they are asked for."""


def greedy(logits: Tensor, _: Sequence[int]) -> Tensor:
    """The likeliest tokens."""
    return logits.argmax(dim=-1)


@torch.inference_mode()
def decode(
    checkpoint: Checkpoint,
    trees: TreeModel,
    job: Job,
    rows: Sequence[Sequence[Ids]],
    limit: int,
    ended: Callable[[Sequence[int]], bool],
    choose: Choose = greedy,
) -> list[list[int]]:
    """The tokens after each prompt of `rows`, in their order, `limit` or until `ended`: those that `choose` takes of
    float32 logits.

    The last token of an answer that ended is the one that ended it.
    """
    built = [build_tree(prompts, job.base) for prompts in rows]
    states, kept = trees.states_and_cache(built, job)
    row = torch.tensor([number for number, tree in enumerate(built) for _ in tree.paths])
    paths = [torch.from_numpy(path) for tree in built for path in tree.paths]
    last = torch.stack([path[-1] for path in paths])
    live = list(range(len(paths)))
    token = choose(checkpoint.logits(states[row, last]), live)
    cache, visible = _own_caches(kept, row, paths, job.base)
    del states, kept
    position = visible.sum(dim=1)
    answers: list[list[int]] = [[] for _ in paths]
    while True:
        check_interrupt()
        for number, value in zip(live, token.tolist(), strict=True):
            answers[number].append(value)
        going = [at for at, number in enumerate(live) if len(answers[number]) < limit and not ended(answers[number])]
        if not going:
            return answers
        if len(going) < len(live):
            chosen = torch.tensor(going, device=token.device)
            cache.batch_select_indices(chosen)
            token, position, visible = token[chosen], position[chosen], visible[chosen]
            live = [live[at] for at in going]
        visible = torch.cat([visible, visible.new_ones(len(live), 1)], dim=1)
        token = choose(_next(checkpoint, token, position, visible, cache), live)
        position = position + 1


def _next(checkpoint: Checkpoint, token: Tensor, position: Tensor, visible: Tensor, cache: Any) -> Tensor:
    """Logits [B, V] of what follows `token` [B], whose keys and values go into the cache."""
    states = checkpoint.model.base_model(
        input_ids=token[:, None],
        position_ids=position[:, None],
        attention_mask=attention_mask(checkpoint.model, visible[:, None, None]),
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
    return checkpoint.logits(states[:, -1])


def _own_caches(kept: KeyValues, row: Tensor, paths: Sequence[Tensor], base: int) -> tuple[Any, Tensor]:
    """A cache with each prompt's own keys and values, padded on the left, and which of them [B, L] are a prompt's."""
    size = base + max(map(len, paths))
    index = torch.zeros(len(paths), size, dtype=torch.long)
    visible = torch.zeros(len(paths), size, dtype=torch.bool)
    for number, path in enumerate(paths):
        start = size - base - len(path)
        index[number, start : start + base] = torch.arange(base)
        index[number, start + base :] = base + path
        visible[number, start:] = True
    device = kept[0][0].device
    cache = DynamicCache()
    for layer, pair in enumerate(kept):
        keys, values = (each.transpose(1, 2)[row[:, None], index].transpose(1, 2) for each in pair)
        cache.update(keys, values, layer)
    return cache, visible.to(device)
