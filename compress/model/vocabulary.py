"""Whether models and stored text speak of the same tokens, settled before any work."""

from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from compress.base.errors import InputError
from compress.base.progress import say
from compress.model.load import load_config, load_tokenizer
from compress.model.tokenizer import tokenizer_fingerprint


def shared_ids(student: Path, teacher: Path | None) -> int:
    """How many token ids, from 0, the loss compares: the smaller of the two models' vocabularies.

    Embeddings of one model family are padded to different sizes; ids no tokenizer produces are left out, with a notice.

    Raises:
        InputError: as `common_ids`.
    """
    shared = common_ids(student, teacher)
    sizes = _vocabulary_size(student), shared if teacher is None else _vocabulary_size(teacher)
    if sizes[0] != sizes[1]:
        say(
            f"The student's vocabulary has {sizes[0]} rows and the teacher's {sizes[1]}, with the same "
            f"tokenizer: the soft loss compares the {shared} ids they share."
        )
    return shared


def common_ids(student: Path, teacher: Path | None) -> int:
    """`shared_ids` without the notice.

    Raises:
        InputError: an id means different tokens to the two, or a token's id lies beyond the shared ones.
    """
    if teacher is None:
        return _vocabulary_size(student)
    shared = min(_vocabulary_size(student), _vocabulary_size(teacher))
    compare_tokens(load_tokenizer(student).get_vocab(), load_tokenizer(teacher).get_vocab(), shared)
    return shared


def compare_tokens(student: dict[str, int], teacher: dict[str, int], shared: int) -> None:
    """Check that two tokenizers give each id below `shared` the same token, and no token an id at or above it.

    Raises:
        InputError: they do not; the message shows the first difference.
    """
    if student != teacher:
        differing = sorted(set(student.items()) ^ set(teacher.items()), key=lambda item: (item[1], item[0]))
        token, number = differing[0]
        raise InputError(
            f"The teacher's and the student's tokenizers differ in {len(differing)} entries, the first being token id "
            f"{number}: {token!r} is {_meaning(token, teacher)} to the teacher and {_meaning(token, student)} to the "
            "student. Token distributions can be compared only over one vocabulary: choose a teacher and a student "
            "with the same tokenizer, or set alpha to 0."
        )
    beyond = {token: number for token, number in student.items() if number >= shared}
    if beyond:
        token, number = min(beyond.items(), key=lambda item: item[1])
        raise InputError(
            f"The tokenizer gives {len(beyond)} tokens ids of {shared} or more (the first: {token!r}, {number}), which "
            "one of the two models has no embedding for. Resize the smaller model's embeddings."
        )


class StoredTokens(Protocol):
    """What a token store says of its rows."""

    path: Path
    tokenizer_sha256: str
    vocab_size: int
    seq_len: int


def check_store(store: StoredTokens, tokenizer: Any, reader: str, *, context: int | None = None) -> None:
    """Check that the model `reader` can read a token store: they share a tokenizer, and rows fit into its `context`.

    Raises:
        InputError: it cannot; the message names both.
    """
    if store.tokenizer_sha256 != tokenizer_fingerprint(tokenizer):
        raise InputError(
            f"The token store {store.path} was made with another tokenizer than {reader} has. Prepare the text with "
            "this model's tokenizer, or give the raw text."
        )
    if context is not None and store.seq_len > context:
        raise InputError(
            f"The rows of {store.path} have {store.seq_len} tokens, and {reader} reads at most {context}. Prepare the "
            "text in shorter rows (data.seq_len), or give the raw text."
        )


def check_ids(ids: NDArray[np.int64], num_embeddings: int, tokenizer: Any, reader: str) -> None:
    """Refuse token ids that the model `reader` has no embedding for.

    Raises:
        InputError: one of `ids` is `num_embeddings` or more; the message names the token.
    """
    highest = int(ids.max(initial=-1))
    if highest >= num_embeddings:
        token = tokenizer.convert_ids_to_tokens(highest) if highest < len(tokenizer) else None
        named = f"the token {token!r}, id {highest}," if token else f"the token id {highest},"
        raise InputError(
            f"The text has {named} and the embedding of {reader} has {num_embeddings} rows. Give the model a row for "
            "each token (`resize_token_embeddings`), take the token out of its tokenizer, or, if the text was made for "
            "another model, prepare it with this model's tokenizer."
        )


def check_data(store: StoredTokens, student: Path, shared: int) -> None:
    """Check that a token store was made with the student's tokenizer, and has no ids from `shared` on.

    Raises:
        InputError: it was made with another, or holds ids the models do not have.
    """
    check_store(store, load_tokenizer(student), str(student))
    if store.vocab_size > shared:
        raise InputError(
            f"The token store has a vocabulary of {store.vocab_size} and the models share only {shared} token ids."
        )


def _vocabulary_size(folder: Path) -> int:
    return int(load_config(folder).get_text_config().vocab_size)


def _meaning(token: str, vocabulary: dict[str, int]) -> str:
    return f"id {vocabulary[token]}" if token in vocabulary else "unknown"
