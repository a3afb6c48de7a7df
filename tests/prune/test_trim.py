"""Trimmed models: the whole one's numbers on the ids that stay, and a tokenizer that says as much with fewer tokens."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import SHARED_DATA, run_cli, save_tiny_model
from real_teachers import real_teacher
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from compress.base.errors import InputError, UsageError
from compress.data import DataConfig, prepare
from compress.prune import TrimConfig, trim
from compress.prune.trimming.pieces import Bpe

SPECIAL = ["<unk>", "<bos>", "<eos>", "<pad>"]
OTHERS = ["Łódź naïve Straße", "早上好 こんにちは", "😀👩‍👩‍👧 e\u0301", " two  spaces\n\n\ttab\r\n", "नमस्ते اَلْعَرَبِيَّةُ"]


def words(seed: int, letters: str, count: int) -> list[str]:
    rng = random.Random(seed)
    return ["".join(rng.choices(letters, k=rng.randint(2, 8))) for _ in range(count)]


WIDE, NARROW = words(0, "abcdefghijklmno", 120), words(1, "abcdef", 25)
"""What the tokenizers are trained on, and of these what the text is made of."""


def sentences(of: list[str], count: int, seed: int = 2) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(of, k=12)) for _ in range(count)]


CORPUS = sentences(WIDE + NARROW, 300)
DOCUMENTS = sentences(NARROW, 60)


def byte_level(ignore_merges: bool = False) -> Tokenizer:
    """SmolLM2's and Llama 3's kind."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=600, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False),
    )
    return tokenizer


def with_fallback() -> Tokenizer:
    """Gemma's kind: sentencepiece's BPE, whose tokens are text with a mark for spaces, and bytes for the rest."""
    learned = Tokenizer(models.BPE())
    learned.train_from_iterator(
        (line.replace(" ", "▁") for line in CORPUS), trainers.BpeTrainer(vocab_size=300, show_progress=False)
    )
    model = json.loads(learned.to_str())["model"]
    names = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *model["vocab"]]
    merges = [tuple(pair) for pair in model["merges"]]
    ids = {name: number for number, name in enumerate(names)}
    tokenizer = Tokenizer(models.BPE(ids, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def unigram() -> Tokenizer:
    """T5's and XLNet's kind, with bytes for the rest."""
    learned = Tokenizer(models.Unigram())
    learned.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    learned.train_from_iterator(
        CORPUS,
        trainers.UnigramTrainer(vocab_size=250, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False),
    )
    pieces = [tuple(entry) for entry in json.loads(learned.to_str())["model"]["vocab"]]
    pieces += [(f"<0x{byte:02X}>", -20.0) for byte in range(256)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = learned.pre_tokenizer
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()],
    )
    return tokenizer


KINDS: dict[str, tuple[Callable[[], Tokenizer], str, dict[str, Any]]] = {
    "byte-level, tied, padded rows": (byte_level, "llama", {}),
    "sentencepiece BPE, soft caps": (with_fallback, "gemma2", {"head_dim": 8, "query_pre_attn_scalar": 8}),
    "unigram, a head with a bias": (unigram, "phi", {"tie_word_embeddings": False}),
}


def save_whole(folder: Path, kind: str) -> Path:
    """A model with rows beyond its tokenizer's ids, and the ids of four tokens in its configs."""
    make, model_type, fields = KINDS[kind]
    backend = make()
    backend.add_special_tokens([*SPECIAL, "<extra>"])
    backend.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <eos> $B", special_tokens=[(t, backend.token_to_id(t)) for t in SPECIAL[1:3]]
    )
    ids = {f"{name}_token_id": backend.token_to_id(f"<{name}>") for name in ("bos", "eos", "pad")}
    save_tiny_model(folder, model_type, vocab_size=backend.get_vocab_size() + 13, **ids, **fields)
    names = {f"{name}_token": f"<{name}>" for name in ("unk", "bos", "eos", "pad")}
    for stale in folder.glob("tokenizer*"):
        stale.unlink()
    PreTrainedTokenizerFast(tokenizer_object=backend, **names).save_pretrained(folder)
    generation = json.loads((folder / "generation_config.json").read_text())
    suppressed = {"suppress_tokens": [ids["pad_token_id"], backend.token_to_id("<extra>") - 1, 10**6]}
    (folder / "generation_config.json").write_text(json.dumps({**generation, **suppressed}))
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    path.write_text("\n".join(json.dumps({"text": line}) for line in DOCUMENTS))
    return path


@pytest.fixture(scope="module", params=KINDS)
def pair(request: pytest.FixtureRequest, text: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A whole model, and what is left of it."""
    folder = tmp_path_factory.mktemp("trim")
    whole = save_whole(folder / "whole", request.param)
    trim(whole, folder / "trimmed", TrimConfig(data=str(text), multiple_of=1))
    return whole, folder / "trimmed"


def kept_of(folder: Path) -> list[int]:
    kept: list[int] = json.loads((folder / "trim.json").read_text())["kept_ids"]
    return kept


def test_weights_are_the_whole_ones_rows_and_logits_the_same_bits(pair: tuple[Path, Path]) -> None:
    whole, trimmed = pair
    kept = torch.tensor(kept_of(trimmed))
    rows = AutoConfig.from_pretrained(whole).vocab_size
    assert len(kept) < rows - 13
    before, after = (load_file(folder / "model.safetensors") for folder in pair)
    assert before.keys() == after.keys()
    for name, value in before.items():
        by_id = value.shape[0] == rows
        assert torch.equal(after[name], value[kept] if by_id else value), name
    large, small = (AutoModelForCausalLM.from_pretrained(folder).eval() for folder in pair)
    ids = torch.arange(len(kept))[None, :200]
    with torch.no_grad():
        expected, found = large(kept[ids]).logits[..., kept], small(ids).logits
    assert torch.equal(found, expected)
    record = json.loads((trimmed / "trim.json").read_text())
    assert record["params_before"] == sum(p.numel() for p in large.parameters())
    assert record["params_after"] == sum(p.numel() for p in small.parameters())


def test_text_that_was_counted_gets_the_same_pieces_and_any_text_is_given_back(pair: tuple[Path, Path]) -> None:
    large, small = (AutoTokenizer.from_pretrained(folder) for folder in pair)
    kept = kept_of(pair[1])
    counted = [document for number, document in enumerate(DOCUMENTS) if number % 20 != 19]
    for document in counted:
        new = small(document).input_ids
        assert [kept[token] for token in new] == large(document).input_ids
        assert small.convert_ids_to_tokens(new) == large.tokenize(document, add_special_tokens=True)
    for document in [*DOCUMENTS, *OTHERS, *CORPUS[:50]]:
        assert small.decode(small(document).input_ids, skip_special_tokens=True) == document
    assert small(DOCUMENTS[0], DOCUMENTS[1]).input_ids.count(small.eos_token_id) == 1


def test_ids_in_all_files_mean_the_same_tokens(pair: tuple[Path, Path]) -> None:
    large, small = (AutoTokenizer.from_pretrained(folder) for folder in pair)
    kept = kept_of(pair[1])
    old, new = large.get_vocab(), small.get_vocab()
    assert {token: kept[number] for token, number in new.items()} == {t: n for t, n in old.items() if n in kept}
    before, after = (AutoConfig.from_pretrained(folder) for folder in pair)
    generation = json.loads((pair[1] / "generation_config.json").read_text())
    for name in ("bos", "eos", "pad"):
        assert getattr(large, f"{name}_token") == getattr(small, f"{name}_token") == f"<{name}>"
        field = f"{name}_token_id"
        assert (getattr(before, field), getattr(after, field)) == (old[f"<{name}>"], new[f"<{name}>"])
    assert generation["suppress_tokens"][0] == new["<pad>"]
    assert len(generation["suppress_tokens"]) == 1 + (old["<extra>"] - 1 in kept)


def merged_on_the_way(token: str, merges: list[list[str]]) -> set[str]:
    """All symbols that a BPE passes through: each merge is applied to all of the token, in the order learned."""
    symbols = list(token)
    seen = set(symbols)
    for left, right in merges:
        at = 0
        while at < len(symbols) - 1:
            if (symbols[at], symbols[at + 1]) == (left, right):
                symbols[at : at + 2] = [left + right]
            at += 1
        seen |= set(symbols)
    return seen


def test_nothing_stays_but_what_is_used_special_a_letter_or_on_the_way(text: Path, tmp_path: Path) -> None:
    whole = save_whole(tmp_path / "whole", "byte-level, tied, padded rows")
    trim(whole, tmp_path / "trimmed", TrimConfig(data=str(text), multiple_of=1))
    tokenizer = AutoTokenizer.from_pretrained(whole)
    merges = json.loads((whole / "tokenizer.json").read_text())["model"]["merges"]
    counted = [document for number, document in enumerate(DOCUMENTS) if number % 20 != 19]
    used = {token for document in counted for token in tokenizer.tokenize(document)}
    expected = {*SPECIAL, "<extra>", *pre_tokenizers.ByteLevel.alphabet()}
    expected |= {symbol for token in used for symbol in merged_on_the_way(token, merges)}
    assert set(AutoTokenizer.from_pretrained(tmp_path / "trimmed").get_vocab()) == expected


def test_a_number_of_ids_keeps_the_most_used_and_says_what_that_costs(text: Path, tmp_path: Path) -> None:
    whole = save_whole(tmp_path / "whole", "byte-level, tied, padded rows")
    planned = json.loads(
        run_cli("trim", str(whole), str(tmp_path / "x"), "--data", str(text), "--dry-run", "--json").stdout
    )
    always = planned["always_kept"]
    assert not (tmp_path / "x").exists()
    command = ("trim", str(whole), str(tmp_path / "few"), "--data", str(text), "--keep-tokens", str(always + 20))
    record = json.loads(run_cli(*command, "--json").stdout)
    assert (record["vocab_after"], len(record["kept_ids"])) == (always + 20, always + 20)
    heldout = record["text"]["heldout"]
    assert heldout["same_pieces"] < 1 < heldout["tokens_after"] / heldout["tokens_before"]
    tokenizer = AutoTokenizer.from_pretrained(whole)
    frequent = max(set(NARROW), key=lambda word: sum(document.split().count(word) for document in DOCUMENTS))
    small = AutoTokenizer.from_pretrained(tmp_path / "few")
    assert small.tokenize(f" {frequent}") == tokenizer.tokenize(f" {frequent}")
    for wrong in (always - 1, len(tokenizer) + 1):
        with pytest.raises(UsageError, match=f"write a number from {always} to {len(tokenizer)}"):
            trim(whole, tmp_path / "no", TrimConfig(data=str(text), keep_tokens=wrong))
    more = trim(whole, tmp_path / "more", TrimConfig(data=str(text)))
    assert more.record["vocab_after"] % 64 == 0


def test_words_that_no_merges_make_stay_whole_where_merges_are_ignored(tmp_path: Path) -> None:
    """Llama 3's: a word that is a token is that token, whether or not merges lead to it."""
    whole = save_tiny_model(tmp_path / "whole")
    content = json.loads(byte_level(ignore_merges=True).to_str())
    ids = content["model"]["vocab"]
    ids["Ġzyxzyx"] = len(ids)
    backend = Tokenizer.from_str(json.dumps(content))
    save_tiny_model(whole, vocab_size=len(ids), bos_token_id=1, eos_token_id=2, pad_token_id=3)
    names = {f"{name}_token": f"<{name}>" for name in ("unk", "bos", "eos", "pad")}
    PreTrainedTokenizerFast(tokenizer_object=backend, **names).save_pretrained(whole)
    (tmp_path / "text.txt").write_text("a zyxzyx b\n" * 3)
    trim(whole, tmp_path / "trimmed", TrimConfig(data=str(tmp_path / "text.txt"), multiple_of=1))
    small = AutoTokenizer.from_pretrained(tmp_path / "trimmed")
    assert small.tokenize("a zyxzyx") == ["a", "Ġzyxzyx"]
    assert Bpe(content["model"]).needs(ids["Ġzyxzyx"]) == {ids["Ġzyxzyx"]}


def test_what_cannot_be_trimmed_is_refused_by_name_and_nothing_is_left(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def refused(model: Path, expected: str, error: type[Exception] = InputError, **options: Any) -> None:
        with pytest.raises(error, match=expected):
            trim(model, out, TrimConfig(**{"data": str(text), **options}))
        assert not out.exists()

    good = save_whole(tmp_path / "good", "byte-level, tied, padded rows")
    refused(good, "name it with --data SOURCE", UsageError, data=None)
    (tmp_path / "empty.jsonl").write_text(json.dumps({"text": ""}) + "\n")
    refused(good, "empty.jsonl holds no text to count tokens of", data=str(tmp_path / "empty.jsonl"))
    prepare(DataConfig(dataset=str(text), seq_len=32, heldout_sequences=0), good, tmp_path / "store")
    refused(good, "is a token store", data=str(tmp_path / "store"))
    by_word = save_tiny_model(tmp_path / "word")
    backend = Tokenizer(models.WordLevel({"<eos>": 0, "a": 1}, unk_token="<eos>"))
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>").save_pretrained(by_word)
    refused(by_word, "is of the kind WordLevel, whose definition cannot be rebuilt")
    ended = save_tiny_model(tmp_path / "ended")
    content = json.loads((ended / "tokenizer.json").read_text())
    content["model"]["end_of_word_suffix"] = "</w>"
    (ended / "tokenizer.json").write_text(json.dumps(content))
    refused(ended, "BPE with end_of_word_suffix = '</w>'")
    config = json.loads((good / "config.json").read_text())
    (good / "config.json").write_text(json.dumps({**config, "pad_token_id": config["vocab_size"] - 1}))
    refused(good, "names the id .* as pad_token_id, of which its tokenizer has no token")
    (good / "config.json").write_text(json.dumps({**config, "vocab_size_per_layer_input": 300}))
    refused(good, "further tables by token id .vocab_size_per_layer_input")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smollm2", "gemma"])
def test_a_real_model_trimmed_to_real_text(name: str, tmp_path: Path) -> None:
    whole, data = real_teacher(name), SHARED_DATA / "corpus"
    trim(whole, tmp_path / "trimmed", TrimConfig(data=str(data), data_tokens=300_000))
    kept = torch.tensor(kept_of(tmp_path / "trimmed"))
    large, small = (AutoModelForCausalLM.from_pretrained(folder).eval() for folder in (whole, tmp_path / "trimmed"))
    words, fewer = (AutoTokenizer.from_pretrained(folder) for folder in (whole, tmp_path / "trimmed"))
    for document in OTHERS:
        assert fewer.decode(fewer(document).input_ids, skip_special_tokens=True) == document
    ids = torch.tensor([fewer("The old house stood at the end of the road, and nobody had lived in it.").input_ids])
    assert [kept[token].item() for token in ids[0]] == words(
        "The old house stood at the end of the road, and nobody had lived in it."
    ).input_ids
    with torch.no_grad():
        assert torch.equal(small(ids).logits, large(kept[ids]).logits[..., kept])
