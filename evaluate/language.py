"""Held-out loss, and fidelity to the teacher, on the same rows: token chunks, float32 log-softmax, float64 sums."""

import dataclasses
import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compress.errors import InputError
from compress.evaluate.checkpoint import Checkpoint
from compress.evaluate.journal import Batch, Journal
from compress.progress import say


@dataclasses.dataclass
class _Sums:
    """Float64 sums over a batch's scored tokens, nats."""

    loss: float = 0.0
    kl: float = 0.0
    js: float = 0.0
    agree: float = 0.0


def heldout_scores(
    checkpoint: Checkpoint,
    rows: NDArray[np.int64],
    text_bytes: int,
    *,
    teacher: Checkpoint | None = None,
    batch_tokens: int = 8192,
    journal: Journal | None = None,
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Score `rows` [n, S] of token ids; each row's tokens 1..S-1 are predicted from those before them in the row.

    Returns (heldout, fidelity), over the N = n (S - 1) predicted tokens, with p the teacher's and q the model's
    next-token distribution:

    - loss_nats = -mean log q(x); perplexity = exp(loss_nats); bits_per_byte = N loss_nats / (ln 2 * text_bytes), with
      text_bytes the UTF-8 bytes that the predicted tokens stand for
    - kl_nats = mean KL(p || q); js_nats = mean [KL(p || m) + KL(q || m)] / 2 with m = (p + q) / 2, at most ln 2;
      top1_agreement = share of tokens where argmax p = argmax q. Where one vocabulary is padded, p and q are taken
      over the shared ids.

    Raises:
        InputError: a token id beyond the vocabulary, or a teacher with another tokenizer.
    """
    _check_rows(checkpoint, rows)
    if teacher is not None:
        _check_rows(teacher, rows)
        check_same_tokens(checkpoint, teacher)
    step = max(1, batch_tokens // rows.shape[1])
    parts = [np.ascontiguousarray(rows[start : start + step]) for start in range(0, len(rows), step)]
    found = (journal or Journal()).measure(
        "Held-out text",
        [Batch(part.tolist(), len(part)) for part in parts],
        lambda i: dataclasses.asdict(_batch_sums(checkpoint, teacher, torch.from_numpy(parts[i]))),
    )
    sums = _Sums(**{field.name: math.fsum(part[field.name] for part in found) for field in dataclasses.fields(_Sums)})
    tokens = rows.shape[0] * (rows.shape[1] - 1)
    loss = sums.loss / tokens
    heldout = {
        "loss_nats": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "bits_per_byte": sums.loss / math.log(2) / text_bytes if text_bytes else None,
        "tokens": tokens,
    }
    if teacher is None:
        return heldout, None
    return heldout, {
        "kl_nats": sums.kl / tokens,
        "js_nats": sums.js / tokens,
        "top1_agreement": sums.agree / tokens,
        "tokens": tokens,
    }


def check_same_tokens(checkpoint: Checkpoint, teacher: Checkpoint) -> None:
    """Refuse to compare distributions over different tokens.

    Raises:
        InputError: a token has another id in the teacher's tokenizer.
    """
    ours, theirs = checkpoint.tokenizer.get_vocab(), teacher.tokenizer.get_vocab()
    if ours != theirs:
        moved = sorted(t for t in ours.keys() | theirs.keys() if ours.get(t) != theirs.get(t))
        raise InputError(
            f"{checkpoint.name} and its teacher {teacher.name} have different tokenizers: {len(moved)} tokens differ, "
            f"{moved[0]!r} for one. KL and agreement are defined over the same tokens; leave --teacher out."
        )
    if checkpoint.vocab_size != teacher.vocab_size:
        shared = min(checkpoint.vocab_size, teacher.vocab_size)
        say(f"Vocabularies of {checkpoint.vocab_size} and {teacher.vocab_size} ids: the first {shared} are compared.")


def divergences(teacher_logits: Tensor, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(KL(p || q), JS(p, q), argmax equal) for each row of logits [N, V]; nats, in the logits' dtype."""
    log_p, log_q = teacher_logits.log_softmax(dim=-1), logits.log_softmax(dim=-1)
    p, q = log_p.exp(), log_q.exp()
    kl = _expectation(p, log_p - log_q)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    js = 0.5 * (_expectation(p, log_p - log_m) + _expectation(q, log_q - log_m))
    return kl, js, teacher_logits.argmax(dim=-1) == logits.argmax(dim=-1)


def _expectation(p: Tensor, values: Tensor) -> Tensor:
    """sum_v p(v) values(v), with 0 where p(v) = 0 (a masked id has log p = -inf)."""
    return torch.where(p > 0, p * values, torch.zeros_like(p)).sum(dim=-1)


@torch.inference_mode()
def _batch_sums(checkpoint: Checkpoint, teacher: Checkpoint | None, rows: Tensor) -> _Sums:
    """The scores of `rows` [B, S]; no [B S, V] tensor exists, only chunks of positions."""
    sums = _Sums()
    states = checkpoint.states(rows.to(checkpoint.device))[:, :-1].flatten(0, 1)
    labels = rows[:, 1:].flatten().to(checkpoint.device)
    teacher_states = None
    step = checkpoint.chunk_tokens
    if teacher is not None:
        teacher_states = teacher.states(rows.to(teacher.device))[:, :-1].flatten(0, 1)
        step = min(step, teacher.chunk_tokens)
    for start in range(0, len(states), step):
        logits = checkpoint.logits(states[start : start + step])
        target = labels[start : start + step]
        loss = torch.nn.functional.cross_entropy(logits, target, reduction="none")
        sums.loss += _sum(loss)
        if teacher is not None and teacher_states is not None:
            teacher_logits = teacher.logits(teacher_states[start : start + step]).to(logits.device)
            shared = min(checkpoint.vocab_size, teacher.vocab_size)
            kl, js, agree = divergences(teacher_logits[:, :shared], logits[:, :shared])
            sums.kl, sums.js, sums.agree = sums.kl + _sum(kl), sums.js + _sum(js), sums.agree + _sum(agree)
    return sums


def _sum(values: Tensor) -> float:
    return float(values.cpu().double().sum())


def _check_rows(checkpoint: Checkpoint, rows: NDArray[np.int64]) -> None:
    if rows.ndim != 2 or rows.shape[0] < 1 or rows.shape[1] < 2:
        raise InputError("There is no held-out text to score: it must give at least one row of two tokens.")
    if int(rows.max()) >= checkpoint.vocab_size or int(rows.min()) < 0:
        raise InputError(
            f"The held-out text has the token id {int(rows.max())}, and {checkpoint.name} knows "
            f"{checkpoint.vocab_size} ids: it was tokenized for another model. Prepare it with this model's tokenizer."
        )
