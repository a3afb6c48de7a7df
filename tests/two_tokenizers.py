"""Tokenizers of every kind, made on the spot, and models that read by them."""

from pathlib import Path
from typing import Any

from helpers import SHARED_DATA, byte_tokenizer, save_tiny_model
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TEXTS = [
    "The cat sat on the mat. The cats sat, and the mat was flat; number 12 comes after 11.",
    "Кошка сидела на ковре. Кошки сидели, а ковёр лежал.",
    "猫坐在垫子上。猫们坐着。猫坐在上。",
    "猫はマットの上に座った。ネコたちは座った。",
    "جلست القطة على السجادة. القطط جلست.",
    "बिल्ली चटाई पर बैठी। बिल्लियाँ बैठीं।",
    "cafe\u0301 nai\u0308ve \u1ea1\u0308 クム e\u0301e\u0301",
    "👩‍👩‍👧 👩‍🚀🏽 🇫🇷 😀😀",
    "  two  spaces\t\ttabs\n\n\nlines   \n  def f(x):\n        return x  ",
]


def special(tokenizer: Tokenizer, **names: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", **names)


def byte_level(*, nfc: bool = False, size: int = 420) -> PreTrainedTokenizerFast:
    """BPE over bytes, as GPT-2's; `nfc` puts accents together first, as GPT-NeoX's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC() if nfc else None
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<eos>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    return special(tokenizer)


def _pieces() -> list[str]:
    """Pieces with spaces before words, of all scripts but those that are left to single bytes."""
    words = {f"▁{word}" for text in TEXTS[:6] for word in text.split()} | {"▁▁", "▁", "sat", "ب", "猫坐", "e\u0301"}
    letters = {letter for text in TEXTS[:7] for letter in text if not letter.isspace()}
    return sorted(words | letters)


_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def _spelled() -> decoders.Decoder:
    """Every token as it is, the space before the text included."""
    return decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])


def unigram() -> PreTrainedTokenizerFast:
    """Unigram with a space put before the text and single bytes for what has no piece, as sentencepiece's."""
    pieces = [("<unk>", 0.0), ("<bos>", 0.0), ("<eos>", 0.0), *((byte, -20.0) for byte in _BYTES)]
    pieces += [(piece, -1.0 - 1.0 / len(piece)) for piece in _pieces()]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = _spelled()
    return special(tokenizer, bos_token="<bos>", unk_token="<unk>")


def llama_like() -> PreTrainedTokenizerFast:
    """BPE of pieces with ▁ for spaces and before the text, and single bytes, as Llama 2's; BOS before a text."""
    words = [piece for piece in _pieces() if not piece.startswith("▁")] + ["▁"]
    vocabulary = {token: i for i, token in enumerate(["<unk>", "<bos>", "<eos>", *_BYTES, *words])}
    merges = []
    for first, second in (("t", "h"), ("▁", "th"), ("a", "t"), ("▁", "▁"), ("▁▁", "▁▁"), ("猫", "坐"), ("▁th", "e")):
        if first in vocabulary and second in vocabulary:
            merges.append((first, second))
            vocabulary.setdefault(first + second, len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = _spelled()
    return special(tokenizer, bos_token="<bos>", unk_token="<unk>")


def gpt_neox() -> Any:
    """The real one, of the optional data folder; None without it."""
    place = SHARED_DATA / "tokenizers" / "gpt-neox" / "tokenizer.json"
    return PreTrainedTokenizerFast(tokenizer_file=str(place), eos_token="<|endoftext|>") if place.is_file() else None


KINDS = {
    "bytes": byte_tokenizer,
    "byte-level": byte_level,
    "byte-level NFC": lambda: byte_level(nfc=True, size=500),
    "unigram": unigram,
    "llama": llama_like,
    "gpt-neox": gpt_neox,
}


def save_model_of(folder: Path, tokenizer: Any, model_type: str = "llama", **options: Any) -> Path:
    """A tiny random model that reads by this tokenizer."""
    save_tiny_model(folder, model_type, vocab_size=len(tokenizer), **options)
    tokenizer.save_pretrained(folder)
    return folder
