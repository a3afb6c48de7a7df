"""Held-out loss, and fidelity to the teacher, on the same rows: token chunks, float32 log-softmax, float64 sums."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compress.base.errors import InputError
from compress.base.journal import Batch, Journal
from compress.base.progress import say
from compress.evaluate.text.blanks import can_be_hidden, filled, states_of_blanks
from compress.evaluate.text.token_classes import Grouping, group_tokens
from compress.inference.halving import Halving
from compress.inference.readout import Checkpoint, require_numbers
from compress.model.kinds import is_masked
from compress.model.vision import Inputs, collated, to_model

_TOP = 5
_ROWS, _DOCUMENTS = "rows", "documents"

Sums = dict[str, dict[str, list[float]]]
"""Quantity -> grouping -> sum over the tokens of each class; `rows` and `documents` have a class for each of these."""


class Nearness(NamedTuple):
    """What one distribution has of another, for each of N tokens: [N] each."""

    kl: Tensor
    js: Tensor
    top1: Tensor
    top5: Tensor
    accepted: Tensor


def heldout_scores(
    checkpoint: Checkpoint,
    rows: NDArray[np.int64],
    text_bytes: int,
    *,
    documents: NDArray[np.int64] | None = None,
    answers: NDArray[np.bool_] | None = None,
    sources: Sequence[str] | None = None,
    teacher: Checkpoint | None = None,
    batch_tokens: int = 8192,
    mask_every: int = 8,
    journal: Journal | None = None,
    stage: str = "Held-out text",
    inputs: Sequence[Inputs] | None = None,
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Score `rows` [n, S] of token ids; each row's tokens 1..S-1 are predicted from those before them in the row.
    `documents` [n, S] says which document each token is from; None means one a row. `answers` [n, S] says which tokens
    are scored; None scores all. `inputs` [n] is what the models are given beside the ids of each row: its images.
    `sources` [n] names the source of each row of a blend. Each text of an evaluation has a
    `stage` of its journal to itself.

    A masked LM predicts each token of the text from all others of its row that are not hidden at the same time (see
    `compress.evaluate.text.blanks`, which `mask_every` is for), special tokens are not scored, and of `heldout` it has
    besides the top1_accuracy and top5_accuracy of what it fills in, with the standard error of the first.

    Returns (heldout, fidelity), over the N predicted tokens (n (S - 1) without `answers`), with p the teacher's and q
    the model's next-token distribution:

    - loss_nats = -mean log q(x); perplexity = exp(loss_nats); bits_per_byte = N loss_nats / (ln 2 * text_bytes), with
      text_bytes the UTF-8 bytes that the predicted tokens stand for
    - kl_nats, js_nats, top1_agreement, top5_agreement, acceptance_rate: means of what `compare_tokens` gives. Where one
      vocabulary is padded, p and q are taken over the shared ids.
    - documents: how many documents the tokens are from
    - loss_nats_stderr, kl_nats_stderr, acceptance_rate_stderr: standard errors over documents, whose tokens depend on
      each other (of a ratio of sums: Cochran, Sampling Techniques, section 6.4); null for one document
    - by_document of both: lists of the tokens and of the loss or the KL of each document
    - by_position, by_token, by_frequency of both: the loss, the KL and the agreement by class of the predicted token
      (see `compress.evaluate.text.token_classes`), with each class's tokens
    - by_source of both, where there are `sources`: those means of each source, with tokens, documents and standard
      errors

    Raises:
        InputError: no token to score, a token id beyond the vocabulary, a teacher with another tokenizer, or logits
            that are NaN.
    """
    _check_rows(checkpoint, rows)
    if teacher is not None:
        _check_rows(teacher, rows)
        check_same_tokens(checkpoint, teacher)
    scored = np.ones_like(rows[:, 1:], dtype=np.bool_) if answers is None else answers[:, 1:]
    masked = is_masked(checkpoint.model)
    if masked:
        scored = scored & can_be_hidden(checkpoint, rows[:, 1:])
    if not scored.any():
        raise InputError("There is no token to score in the held-out rows: they hold no answer, or no text.")
    groupings = {name: grouping.only(scored) for name, grouping in group_tokens(rows, checkpoint.tokenizer).items()}
    documents = np.repeat(np.arange(len(rows))[:, None], rows.shape[1], axis=1) if documents is None else documents
    numbers = np.unique(documents[:, 1:][scored])
    by_document = Grouping(tuple(map(str, numbers)), np.searchsorted(numbers, documents[:, 1:])).only(scored)
    summed = {**groupings, _DOCUMENTS: by_document}
    step = max(1, batch_tokens // rows.shape[1])
    parts = [range(start, min(start + step, len(rows))) for start in range(0, len(rows), step)]
    halving = Halving(lambda: None)

    def sums_of(part: Sequence[int]) -> Sums:
        def compute(numbers: Sequence[int]) -> list[Sums]:
            here = slice(numbers[0], numbers[-1] + 1)
            part = torch.from_numpy(rows[here].copy())
            seen = {} if inputs is None else collated(inputs[here])
            return [_batch_sums(checkpoint, teacher, part, summed, here, mask_every, seen)]

        return _join(halving.run(part, compute, lambda numbers: len(numbers) * rows.shape[1]))

    found = (journal or Journal()).measure(
        stage,
        [Batch(rows[part].tolist(), len(part)) for part in parts],
        lambda number: sums_of(parts[number]),
    )
    sums = _join(found)
    tokens = int(scored.sum())
    loss = math.fsum(sums["loss"][_ROWS]) / tokens
    heldout = {
        "loss_nats": loss,
        "loss_nats_stderr": _stderr(sums["loss"], by_document),
        "perplexity": math.exp(min(loss, 700.0)),
        "bits_per_byte": loss * tokens / math.log(2) / text_bytes if text_bytes else None,
        "tokens": tokens,
        "documents": len(numbers),
        **_by_class({"loss_nats": sums["loss"]}, groupings),
        "by_document": _by_document({"loss_nats": sums["loss"]}, by_document),
    }
    if inputs is not None:
        heldout["rows_with_images"] = len(rows)
    if masked:
        heldout |= {
            "mask_every": mask_every,
            "top1_accuracy": math.fsum(sums["filled1"][_ROWS]) / tokens,
            "top1_accuracy_stderr": _stderr(sums["filled1"], by_document),
            "top5_accuracy": math.fsum(sums["filled5"][_ROWS]) / tokens,
        }
    fidelity = None if teacher is None else _fidelity(sums, groupings, by_document)
    if sources is not None:
        of_documents = _sources_of(sources, by_document)
        heldout["by_source"] = _by_source({"loss_nats": sums["loss"]}, by_document, of_documents)
        if fidelity is not None:
            near = {"kl_nats": sums["kl"], "top1_agreement": sums["top1"]}
            fidelity["by_source"] = _by_source(near, by_document, of_documents)
    return heldout, fidelity


def _sources_of(sources: Sequence[str], by_document: Grouping) -> NDArray[np.str_]:
    """The source of each document, of which all rows are from one."""
    found = np.empty(len(by_document.labels), dtype=object)
    for source, codes in zip(sources, by_document.codes, strict=True):
        found[np.unique(codes[codes >= 0])] = source
    return found.astype(np.str_)


def _by_source(
    quantities: Mapping[str, Mapping[str, list[float]]], by_document: Grouping, sources: NDArray[np.str_]
) -> dict[str, Any]:
    """Source -> its tokens and documents, and the mean of each quantity with its standard error."""
    found: dict[str, dict[str, Any]] = {}
    for source in dict.fromkeys(sources.tolist()):
        here = sources == source
        tokens = by_document.counts[here]
        found[source] = {"tokens": int(tokens.sum()), "documents": len(tokens)}
        for name, sums in quantities.items():
            values = np.asarray(sums[_DOCUMENTS])[here]
            found[source][name] = math.fsum(values) / int(tokens.sum())
            found[source][f"{name}_stderr"] = ratio_stderr(values, tokens)
    return found


def _fidelity(sums: Sums, groupings: Mapping[str, Grouping], by_document: Grouping) -> dict[str, Any]:
    tokens = int(by_document.counts.sum())

    def mean(quantity: str) -> float:
        return math.fsum(sums[quantity][_ROWS]) / tokens

    return {
        "kl_nats": mean("kl"),
        "kl_nats_stderr": _stderr(sums["kl"], by_document),
        "js_nats": mean("js"),
        "top1_agreement": mean("top1"),
        "top5_agreement": mean("top5"),
        "acceptance_rate": mean("accepted"),
        "acceptance_rate_stderr": _stderr(sums["accepted"], by_document),
        "tokens": tokens,
        "documents": len(by_document.labels),
        **_by_class({"kl_nats": sums["kl"], "top1_agreement": sums["top1"]}, groupings),
        "by_document": _by_document({"kl_nats": sums["kl"]}, by_document),
    }


def _by_document(quantities: Mapping[str, Mapping[str, list[float]]], by_document: Grouping) -> dict[str, list[Any]]:
    """Tokens and the mean of each quantity of every document, in one order: what two models' means are paired by."""
    tokens = by_document.counts
    means = {name: (np.asarray(sums[_DOCUMENTS]) / tokens).tolist() for name, sums in quantities.items()}
    return {"tokens": tokens.tolist(), **means}


def _by_class(quantities: Mapping[str, dict[str, list[float]]], groupings: Mapping[str, Grouping]) -> dict[str, Any]:
    """`by_NAME` of each grouping: class -> its tokens and the mean of each quantity; empty classes are left out."""
    found: dict[str, Any] = {}
    for name, grouping in groupings.items():
        found[f"by_{name}"] = {
            label: {"tokens": int(count), **{q: sums[name][code] / int(count) for q, sums in quantities.items()}}
            for code, (label, count) in enumerate(zip(grouping.labels, grouping.counts, strict=True))
            if count
        }
    return found


def _join(found: list[Sums]) -> Sums:
    """Batches after each other: rows one after the other, classes added up."""

    def joined(quantity: str, name: str) -> list[float]:
        columns = [part[quantity][name] for part in found]
        if name == _ROWS:
            return [value for column in columns for value in column]
        return [math.fsum(values) for values in zip(*columns, strict=True)]

    return {quantity: {name: joined(quantity, name) for name in groups} for quantity, groups in found[0].items()}


def _stderr(sums: Mapping[str, list[float]], by_document: Grouping) -> float | None:
    """Standard error of a mean over tokens that come in documents: that of a ratio of sums, of values and of tokens."""
    return ratio_stderr(np.asarray(sums[_DOCUMENTS]), by_document.counts)


def ratio_stderr(values: NDArray[Any], tokens: NDArray[Any]) -> float | None:
    """Standard error of sum(values) / sum(tokens), both by document (Cochran, Sampling Techniques, section 6.4)."""
    count = len(tokens)
    if count < 2:
        return None
    left = values - tokens * values.sum() / tokens.sum()
    return float(math.sqrt(count / (count - 1) * np.square(left).sum()) / tokens.sum())


class Named(Protocol):
    """A model with its tokenizer, loaded or not."""

    @property
    def name(self) -> str:
        """What the user calls it."""

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer."""


def check_same_tokenizer(model: Named, teacher: Named) -> None:
    """Refuse to compare distributions over different tokens.

    Raises:
        InputError: a token has another id in the teacher's tokenizer.
    """
    ours, theirs = model.tokenizer.get_vocab(), teacher.tokenizer.get_vocab()
    if ours != theirs:
        moved = sorted(t for t in ours.keys() | theirs.keys() if ours.get(t) != theirs.get(t))
        raise InputError(
            f"{model.name} and its teacher {teacher.name} have different tokenizers: {len(moved)} tokens differ, "
            f"{moved[0]!r} for one. KL and agreement are defined over the same tokens; leave --teacher out."
        )


def check_same_tokens(checkpoint: Checkpoint, teacher: Checkpoint) -> None:
    """Raises as `check_same_tokenizer`; and says how many ids are compared where one vocabulary is padded."""
    check_same_tokenizer(checkpoint, teacher)
    if checkpoint.vocab_size != teacher.vocab_size:
        shared = min(checkpoint.vocab_size, teacher.vocab_size)
        say(f"Vocabularies of {checkpoint.vocab_size} and {teacher.vocab_size} ids: the first {shared} are compared.")


def compare_tokens(teacher_logits: Tensor, logits: Tensor) -> Nearness:
    """How near the softmax q of `logits` is to the softmax p of `teacher_logits`, for each row of [N, V].

    - kl = KL(p || q) and js = [KL(p || m) + KL(q || m)] / 2 with m = (p + q) / 2, at most ln 2; nats
    - top1: argmax p = argmax q; top5: the share of p's five most likely tokens that are among q's
    - accepted = sum_v min(p(v), q(v)): the chance that the teacher accepts a token drawn by the model as its draft
      (Leviathan et al., arXiv:2211.17192, corollary 3.6); at temperature 0 that is top1
    """
    log_p, log_q = teacher_logits.log_softmax(dim=-1), logits.log_softmax(dim=-1)
    p, q = log_p.exp(), log_q.exp()
    kl = _expectation(p, log_p - log_q)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    js = 0.5 * (_expectation(p, log_p - log_m) + _expectation(q, log_q - log_m))
    count = min(_TOP, logits.shape[-1])
    theirs, ours = (each.topk(count, dim=-1).indices for each in (teacher_logits, logits))
    shared = (theirs.unsqueeze(-1) == ours.unsqueeze(-2)).sum(dim=(-1, -2)) / count
    same = teacher_logits.argmax(dim=-1) == logits.argmax(dim=-1)
    return Nearness(kl, js, same, shared, torch.minimum(p, q).sum(dim=-1))


def _expectation(p: Tensor, values: Tensor) -> Tensor:
    """sum_v p(v) values(v), with 0 where p(v) = 0 (a masked id has log p = -inf)."""
    return torch.where(p == 0, 0.0, p * values).sum(dim=-1)


@torch.inference_mode()
def _batch_sums(
    checkpoint: Checkpoint,
    teacher: Checkpoint | None,
    rows: Tensor,
    groupings: Mapping[str, Grouping],
    part: slice,
    mask_every: int,
    inputs: Inputs,
) -> Sums:
    """The scores of `rows` [B, S], which are the rows `part` of all; no [B S, V] tensor exists, only chunks of it."""
    scored = groupings[_DOCUMENTS].codes[part].ravel() >= 0
    places = torch.from_numpy(np.flatnonzero(scored))
    found: dict[str, list[Tensor]] = {}
    states = _states(checkpoint, rows, places, mask_every, inputs)
    labels = rows[:, 1:].flatten()[places].to(checkpoint.device)
    teacher_states = None
    step = checkpoint.chunk_tokens
    if teacher is not None:
        teacher_states = _states(teacher, rows, places, mask_every, inputs)
        step = min(step, teacher.chunk_tokens)
    for start in range(0, max(len(states), 1), step):
        logits = checkpoint.logits(states[start : start + step])
        target = labels[start : start + step]
        values = {"loss": torch.nn.functional.cross_entropy(logits, target, reduction="none")}
        require_numbers(values["loss"], checkpoint)
        if is_masked(checkpoint.model):
            values |= filled(logits, target)
        if teacher is not None and teacher_states is not None:
            teacher_logits = teacher.logits(teacher_states[start : start + step]).to(logits.device)
            require_numbers(teacher_logits.logsumexp(dim=-1), teacher)
            shared = min(checkpoint.vocab_size, teacher.vocab_size)
            values |= compare_tokens(teacher_logits[:, :shared], logits[:, :shared])._asdict()
        for quantity, tensor in values.items():
            found.setdefault(quantity, []).append(tensor.cpu().double())
    codes = {name: (grouping.codes[part].ravel()[scored], len(grouping.labels)) for name, grouping in groupings.items()}
    codes[_ROWS] = np.repeat(np.arange(len(rows)), rows.shape[1] - 1)[scored], len(rows)
    return {
        quantity: {
            name: np.bincount(code, weights=torch.cat(chunks).numpy(), minlength=size).tolist()
            for name, (code, size) in codes.items()
        }
        for quantity, chunks in found.items()
    }


def _states(checkpoint: Checkpoint, rows: Tensor, places: Tensor, mask_every: int, inputs: Inputs) -> Tensor:
    """The states [M, D] that predict those tokens of `rows` [B, S] that are at these places [M] of the B (S - 1) after
    each row's first."""
    if is_masked(checkpoint.model):
        return states_of_blanks(checkpoint, rows, places, mask_every)
    seen = to_model(inputs, checkpoint.device, checkpoint.model.dtype)
    states = checkpoint.states(rows.to(checkpoint.device), **seen)
    predicting = states[:, :-1].flatten(0, 1)
    return predicting if len(places) == len(predicting) else predicting[places.to(states.device)]


def _check_rows(checkpoint: Checkpoint, rows: NDArray[np.int64]) -> None:
    if rows.ndim != 2 or rows.shape[0] < 1 or rows.shape[1] < 2:
        raise InputError("There is no held-out text to score: it must give at least one row of two tokens.")
    checkpoint.check_ids(rows)
