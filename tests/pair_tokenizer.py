"""A byte-level tokenizer that merges pairs, as a GGUF file can say it."""

import itertools

from transformers import PreTrainedTokenizerFast

PAIRS = ("th", "an", "in", "er", "Ġt")
VOCABULARY = 256 + len(PAIRS) + 2
"""The bytes, the pairs, `<eos>` and `<think>`."""


def pair_tokenizer(split: str = "gpt-2") -> PreTrainedTokenizerFast:
    """The 256 bytes, merges of `PAIRS`, `<eos>` and a plain added token; `split` is llama.cpp's name of how text is
    split."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(itertools.chain(alphabet, PAIRS))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[tuple(pair) for pair in PAIRS]))
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False)
    ways = {
        "gpt-2": whole,
        "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), whole]),
        "words": pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(r"\w+"), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        ),
    }
    tokenizer.pre_tokenizer = ways[split]
    tokenizer.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    made.add_special_tokens({"eos_token": "<eos>", "bos_token": "<eos>", "pad_token": "<eos>"})
    made.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    return made
