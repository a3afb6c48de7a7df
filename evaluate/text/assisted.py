"""A teacher that writes with a draft's help, by transformers' own assisted generation, and what of the drafts it takes.

Speculative decoding (Leviathan et al., arXiv:2211.17192): the draft writes g tokens, one step of the teacher tests them
all, and takes those before the first that it refuses, and one token of its own after them.
"""

import contextlib
import dataclasses
import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from compress.base.errors import InputError
from compress.evaluate.speed import now
from compress.evaluate.text.language import compare_tokens
from compress.inference.decoding import end_tokens
from compress.inference.readout import Checkpoint


@dataclasses.dataclass(frozen=True)
class Answer:
    """What was written after a prompt, and how."""

    tokens: list[int]
    """Its end included."""
    seconds: float
    """The prompt's own pass included."""
    tests: list[tuple[int, int]]
    """For each step of the teacher, draft tokens that were tested and those accepted; empty without a draft."""


@torch.inference_mode()
def write(
    writer: Checkpoint,
    prompt: Sequence[int],
    new_tokens: int,
    *,
    sampled: bool,
    draft: Checkpoint | None = None,
    draft_tokens: int = 0,
) -> Answer:
    """At most `new_tokens` tokens after a prompt, greedy or drawn at temperature 1 (by torch's own generator).

    A draft writes `draft_tokens` tokens before each step, fewer at the end; no confidence ends it sooner. What the
    models' generation configs say of penalties and the like is left out: the logits are the models' own.

    Raises:
        InputError: transformers cannot let such a model write with a draft, or be one.
    """
    ids = torch.tensor([list(prompt)], dtype=torch.int64, device=writer.device)
    ends = sorted(end_tokens(writer.model, writer.tokenizer))
    settings = GenerationConfig(
        max_new_tokens=new_tokens,
        do_sample=sampled,
        eos_token_id=ends or None,
        pad_token_id=ends[0] if ends else 0,  # of one text nothing is padded
        **({"temperature": 1.0, "top_k": 0, "top_p": 1.0} if sampled else {}),
    )
    assisted = {} if draft is None else {"assistant_model": draft.model}
    with contextlib.ExitStack() as opened:
        opened.enter_context(_generation_config(writer.model, GenerationConfig()))
        if draft is not None:
            opened.enter_context(_generation_config(draft.model, _constant(draft_tokens)))
        drafts = opened.enter_context(_drafts_seen(writer.model, len(prompt)))
        start = now(writer.device)
        try:
            out = writer.model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings, **assisted
            )
        except ValueError as error:
            if draft is None:
                raise
            raise InputError(
                f"transformers cannot let {draft.name} draft for {writer.name}: {error} Leave eval.draft_tokens out."
            ) from error
        seconds = now(writer.device) - start
    tokens: list[int] = out[0, len(prompt) :].tolist()
    tests = [] if draft is None else count_tests([each.tolist() for each in drafts], tokens)
    return Answer(tokens, seconds, tests)


def _constant(draft_tokens: int) -> GenerationConfig:
    """Drafts of always so many tokens."""
    return GenerationConfig(
        num_assistant_tokens=draft_tokens, num_assistant_tokens_schedule="constant", assistant_confidence_threshold=0.0
    )


@contextlib.contextmanager
def _generation_config(model: Any, config: GenerationConfig) -> Iterator[None]:
    own, model.generation_config = model.generation_config, config
    try:
        yield
    finally:
        model.generation_config = own


@contextlib.contextmanager
def _drafts_seen(model: Any, prompt_tokens: int) -> Iterator[list[Tensor]]:
    """The draft tokens of each of the model's steps: all that it reads but for the prompt, and then but for the last
    token that stands already."""
    seen: list[Tensor] = []

    def see(_: Any, __: Any, given: dict[str, Any]) -> None:
        seen.append(given["input_ids"][0, 1 if seen else prompt_tokens :])

    handle = model.register_forward_pre_hook(see, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


def count_tests(drafts: Sequence[Sequence[int]], written: Sequence[int]) -> list[tuple[int, int]]:
    """(tested, accepted) of the drafts of each step, by the text that was written with them.

    A draft token stands in the text where it was accepted: greedy, another token is the likeliest where it is refused,
    and sampled, max(0, p - q), from which is drawn in its place, is 0 for a token that can be refused. Tested are the
    accepted ones and the first refused one; none follows an accepted end of text.
    """
    tests, place = [], 0
    for draft in drafts:
        left = written[place:]
        pairs = enumerate(zip(draft, left, strict=False))
        accepted = next((i for i, (drafted, stands) in pairs if drafted != stands), min(len(draft), len(left)))
        tests.append((min(accepted + 1, len(draft), len(left)), accepted))
        place += accepted + 1
    return tests


@torch.inference_mode()
def expected_acceptance(
    teacher: Checkpoint, draft: Checkpoint, prompt: Sequence[int], tokens: Sequence[int], *, sampled: bool
) -> Tensor:
    """How likely the teacher accepts a token of the draft at each of the places of `tokens` after the prompt: [N].

    Sampled, sum_v min(p(v), q(v)) (arXiv:2211.17192, corollary 3.6); greedy, whether both prefer the same token.
    """
    ids = torch.tensor([[*prompt, *tokens]], dtype=torch.int64)
    theirs, ours = (_last_logits(each, ids, len(tokens)) for each in (teacher, draft))
    near = compare_tokens(theirs, ours.to(theirs.device))
    return (near.accepted if sampled else near.top1).double().cpu()


def _last_logits(checkpoint: Checkpoint, ids: Tensor, count: int) -> Tensor:
    """The float32 logits [count, V] by which the last `count` of `ids` [1, S] are predicted, as generation has them."""
    takes = inspect.signature(checkpoint.model.forward).parameters
    few = {"logits_to_keep": count + 1} if "logits_to_keep" in takes else {}
    logits: Tensor = checkpoint.model(input_ids=ids.to(checkpoint.device), use_cache=False, **few).logits
    return logits[0, -count - 1 : -1].float()
