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
        InputError: an id means different tokens to the two, or the end of a text has an id beyond the shared ones.
    """
    tokenizer = load_tokenizer(student)
    if teacher is not None:
        compare_tokens(tokenizer.get_vocab(), load_tokenizer(teacher).get_vocab())
    shared, reader = min((_vocabulary_size(folder), str(folder)) for folder in (student, teacher) if folder is not None)
    if tokenizer.eos_token_id is not None:
        check_ids(np.array([tokenizer.eos_token_id]), shared, tokenizer, reader)
    return shared


def same_tokens(student: Path, teacher: Path) -> bool:
    """Whether two models' tokenizers give each token the same id; raises as `load_tokenizer`."""
    same: bool = load_tokenizer(student).get_vocab() == load_tokenizer(teacher).get_vocab()
    return same


def compare_tokens(student: dict[str, int], teacher: dict[str, int]) -> None:
    """Check that two tokenizers give each token the same id.

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
            "with the same tokenizer, or set distill.divergence to uld, which needs no names of tokens."
        )


class StoredTokens(Protocol):
    """What a token store says of its rows."""

    path: Path
    tokenizer_sha256: str
    vocab_size: int
    seq_len: int

    def largest_id(self) -> int:
        """The largest token id of all rows."""


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
    """Refuse token ids that the model `reader` has no embedding for. Tokens that no text has are no matter.

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
    """Check that a token store was made with the student's tokenizer, and has no ids from `shared` on: it is read for
    them where the tokenizer has any.

    Raises:
        InputError: it was made with another, or holds ids the models do not have.
    """
    tokenizer = load_tokenizer(student)
    check_store(store, tokenizer, str(student))
    if store.vocab_size > shared:
        check_ids(np.array([store.largest_id()]), shared, tokenizer, f"{student} (or its teacher)")


def _vocabulary_size(folder: Path) -> int:
    return int(load_config(folder).get_text_config().vocab_size)


def _meaning(token: str, vocabulary: dict[str, int]) -> str:
    return f"id {vocabulary[token]}" if token in vocabulary else "unknown"
