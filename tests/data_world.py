"""Small sources of text in every format, and a naive second opinion on what their token store must hold."""

import gzip
import json
import random
import re
import unicodedata
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from compress.data import DataConfig, TokenStore

EOS = 256  # helpers.byte_tokenizer: ids 0..255 are the bytes in the order of ByteLevel's alphabet
FORMATS = ("parquet", "arrow", "arrows", "jsonl", "jsonl.gz", "jsonl.zst", "txt", "txt.gz")


def documents(count: int, seed: int = 0, *, near: float = 0.0) -> list[str]:
    """Lines of 1 to 120 characters, some beyond ASCII, a tenth of them copies of earlier ones.

    A share `near` of them is copies in capitals and with other white space.
    """
    rng = random.Random(seed)
    alphabet = "abcdefghij klmnop qrstuv wxyz .,;é€𝄞漢"
    made: list[str] = []
    for _ in range(count):
        if made and rng.random() < 0.1:
            made.append(rng.choice(made))
        elif near and made and rng.random() < near:
            made.append(rng.choice(made).upper().replace(" ", rng.choice(["  ", "\u3000", " \t"])))
        else:
            made.append("".join(rng.choices(alphabet, k=rng.randint(1, 120))).strip() or "x")
    return made


def write_source(path: Path, texts: Sequence[str]) -> Path:
    """Write documents in the format that the name says (`.arrows` is the stream form of `.arrow`)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"id": list(range(len(texts))), "text": list(texts)})
    lines = "".join(text + "\n" for text in texts)
    json_lines = "".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(texts))
    name = path.name
    if name.endswith(".parquet"):
        pq.write_table(table, path, row_group_size=7)
    elif name.endswith(".arrow"):
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=5)
    elif name.endswith(".arrows"):
        path = path.with_suffix(".arrow")
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=5)
    else:
        raw = (json_lines if ".jsonl" in name else lines).encode()
        if name.endswith(".gz"):
            raw = gzip.compress(raw)
        elif name.endswith(".zst"):
            half = len(raw) // 2
            raw = zstandard.compress(raw[:half]) + zstandard.compress(raw[half:])
        path.write_bytes(raw)
    return path


def data_config(dataset: Path | str, **options: Any) -> DataConfig:
    """A config of a small store."""
    return DataConfig(**{"dataset": str(dataset), "seq_len": 32, "heldout_sequences": 4, **options})


def naive_split(texts: Sequence[str], num_rows: int, seq_len: int, seed: int = 0) -> tuple[list[str], list[str], int]:
    """(training, held out, rows a document gives) by the definition of the pool, recomputed from scratch at each step.

    One token a byte and an EOS: a document of b bytes has b + 1 tokens. All of the texts are to be prepared.
    """

    def key(form: str) -> bytes:
        return blake2b(form.encode(), digest_size=16, key=seed.to_bytes(8, "little")).digest()

    def tokens(form: str) -> int:
        return len(texts[forms.index(form)].encode()) + 1

    def gives(form: str, share: int) -> int:
        return tokens(form) if tokens(form) <= share * seq_len else share * seq_len

    def pool_of(candidates: Sequence[str], share: int) -> list[str]:
        found: list[str] = []
        for candidate in sorted(set(candidates), key=key):
            if sum(gives(form, share) for form in found) >= num_rows * seq_len:
                break
            found.append(candidate)
        return found

    def release(before: Sequence[str], after: Sequence[str], seen: Sequence[str]) -> None:
        for left in sorted(set(before) - set(after), key=key, reverse=True):
            alike = [each for each in seen if normal_form(each) == left]
            training.extend(each for first in dict.fromkeys(alike) for each in alike if each == first)

    forms = list(map(normal_form, texts))
    training: list[str] = []
    pool: list[str] = []  # normal forms, each of which stands for its texts
    share = 1
    for i, text in enumerate(texts):
        before, pool = pool, pool_of(forms[: i + 1], share)
        release(before, pool, texts[:i])
        if forms[i] not in pool:
            training.append(text)
    while any(tokens(form) > share * seq_len for form in pool):
        enough = sum(gives(form, share) for form in pool) >= num_rows * seq_len
        held = sum(map(tokens, pool))
        if enough and 9 * held <= sum(len(text.encode()) + 1 for text in training):
            break
        share *= 2
        before, pool = pool, pool_of(pool, share)
        release(before, pool, texts)
    return training, [texts[forms.index(form)] for form in pool], share


def normal_form(text: str) -> str:
    """What copies that differ in case, white space or the form of characters have in common."""
    return re.sub(r"\s+", " ", unicodedata.normalize("NFC", text.casefold())).strip()


def stream_of(texts: Sequence[str], tokenizer: Any) -> list[int]:
    """The ids of documents with EOS after each."""
    ids: list[int] = []
    for text in texts:
        ids.extend([*tokenizer(text, add_special_tokens=False)["input_ids"], EOS])
    return ids


def all_rows(store: TokenStore) -> list[int]:
    """Training rows in the order they are stored in, as one list of ids."""
    return [int(i) for i in store.rows(range(store.num_rows)).reshape(-1)]


def content(folder: Path) -> dict[str, Any]:
    """Everything in a store that must not depend on how often it was cut: all files, and the index but for timings."""
    found: dict[str, Any] = {
        path.name: content(path) if path.is_dir() else path.read_bytes()
        for path in sorted(folder.iterdir())
        if path.suffix != ".json"
    }
    index = json.loads((folder / "index.json").read_text())
    for volatile in ("seconds", "peak_gib", "command", "git_commit"):
        index["manifest"].pop(volatile)
    return {**found, "index": index}


def trained_tokenizer(texts: list[str], vocab_size: int) -> Any:
    """A byte-level BPE with GPT-2's pre-tokenizer, trained on `texts`."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=["<eos>"], show_progress=False)
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")
