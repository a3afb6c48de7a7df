"""What is learned of conversations under three real tokenizers, token by token, against ids written by hand.

GPT-NeoX's lies in ../shared/data. `REAL_TEACHERS` names a folder with two models (see test_real_framing.py):

REAL_TEACHERS=DIR pytest -m slow tests/data/test_real_chats.py
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from chat_world import conversations
from helpers import SHARED_DATA
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from compress.data import DataConfig, prepare
from compress.model.load import load_tokenizer

CHAT = {
    "messages": [
        {"role": "user", "content": "Name two colours."},
        {"role": "assistant", "content": "Red and blue."},
        {"role": "user", "content": "One more?"},
        {"role": "assistant", "content": "Green."},
    ]
}
ADD = {"instruction": "Add them.", "input": "1 2", "output": "3"}
DO = {"prompt": "Add them.", "completion": "3"}

# Ids of pieces of text, between which no token reaches, and these pieces.
Pieces = list[tuple[str, list[int]]]
_SYSTEM: Pieces = [
    ("<|im_start|>system\n", [1, 9690, 198]),
    (
        "You are a helpful AI assistant named SmolLM,",
        [2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28],
    ),
    (" trained by Hugging Face<|im_end|>\n", [7018, 411, 407, 19712, 8182, 2, 198]),
]
SMOLLM2: dict[str, tuple[dict[str, Any], Pieces]] = {
    "chat": (
        CHAT,
        [
            *_SYSTEM,
            ("<|im_start|>user\n", [1, 4093, 198]),
            ("Name two colours.<|im_end|>\n", [5820, 827, 14797, 30, 2, 198]),
            ("<|im_start|>assistant\n", [1, 520, 9531, 198]),
            ("«Red and blue.<|im_end|>", [12869, 284, 4461, 30, 2]),
            ("\n<|im_start|>user\n", [198, 1, 4093, 198]),
            ("One more?<|im_end|>\n", [2705, 540, 47, 2, 198]),
            ("<|im_start|>assistant\n", [1, 520, 9531, 198]),
            ("«Green.<|im_end|>", [15420, 30, 2]),
            ("\n", [198]),
        ],
    ),
    "alpaca": (
        ADD,
        [
            *_SYSTEM,
            ("<|im_start|>user\n", [1, 4093, 198]),
            ("Add them.\n\n1 2<|im_end|>\n", [7684, 601, 30, 198, 198, 33, 216, 34, 2, 198]),
            ("<|im_start|>assistant\n", [1, 520, 9531, 198]),
            ("«3<|im_end|>", [35, 2]),
            ("\n", [198]),
        ],
    ),
    "completion": (
        DO,
        [
            *_SYSTEM,
            ("<|im_start|>user\n", [1, 4093, 198]),
            ("Add them.<|im_end|>\n", [7684, 601, 30, 2, 198]),
            ("<|im_start|>assistant\n", [1, 520, 9531, 198]),
            ("«3<|im_end|>", [35, 2]),
            ("\n", [198]),
        ],
    ),
}
_BELOW = [43760, 563, 614, 14787, 600, 15517, 496, 4209]
_WRITE = [15642, 496, 3072, 600, 37404, 42342, 506, 2864, 236761]
GEMMA: dict[str, tuple[dict[str, Any], Pieces]] = {  # no template: Alpaca's layout, after BOS as its tokenizer begins
    "chat": (
        CHAT,
        [
            ("<bos>Below is an instruction that describes a task", [2, *_BELOW]),
            (". Write a response that appropriately completes the request.", [236761, *_WRITE]),
            ("\n\n### Instruction:\n", [108, 10354, 64017, 236787, 107]),
            ("Name two colours.", [1567, 1156, 22640, 236761]),
            ("\n\n### Response:\n", [108, 10354, 14503, 236787, 107]),
            ("«Red and blue.<eos>", [9264, 532, 3730, 236761, 1]),
            ("\n\n### Instruction:\n", [108, 10354, 64017, 236787, 107]),
            ("One more?", [4906, 919, 236881]),
            ("\n\n### Response:\n", [108, 10354, 14503, 236787, 107]),
            ("«Green.<eos>", [17224, 236761, 1]),
        ],
    ),
    "alpaca": (
        ADD,
        [
            ("<bos>Below is an instruction that describes a task", [2, *_BELOW]),
            (
                ", paired with an input that provides further context",
                [236764, 33481, 607, 614, 2744, 600, 4728, 3342, 4403],
            ),
            (". Write a response that appropriately completes the request.", [236761, *_WRITE]),
            ("\n\n### Instruction:\n", [108, 10354, 64017, 236787, 107]),
            ("Add them.", [3218, 1091, 236761]),
            ("\n\n### Input:\n", [108, 10354, 13065, 236787, 107]),
            ("1 2", [236770, 236743, 236778]),
            ("\n\n### Response:\n", [108, 10354, 14503, 236787, 107]),
            ("«3<eos>", [236800, 1]),
        ],
    ),
    "completion": (
        DO,
        [
            ("<bos>Below is an instruction that describes a task", [2, *_BELOW]),
            (". Write a response that appropriately completes the request.", [236761, *_WRITE]),
            ("\n\n### Instruction:\n", [108, 10354, 64017, 236787, 107]),
            ("Add them.", [3218, 1091, 236761]),
            ("\n\n### Response:\n", [108, 10354, 14503, 236787, 107]),
            ("«3<eos>", [236800, 1]),
        ],
    ),
}
GEMMA_TEMPLATE = (  # that of its instruction-tuned models
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) + '\n' + message.content | trim "
    "+ '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
GEMMA_CHAT: Pieces = [
    ("<bos><start_of_turn>user\n", [2, 105, 2364, 107]),
    ("Name two colours.<end_of_turn>\n", [1567, 1156, 22640, 236761, 106, 107]),
    ("<start_of_turn>model\n", [105, 4368, 107]),
    ("«Red and blue.<end_of_turn>", [9264, 532, 3730, 236761, 106]),
    ("\n<start_of_turn>user\n", [107, 105, 2364, 107]),
    ("One more?<end_of_turn>\n", [4906, 919, 236881, 106, 107]),
    ("<start_of_turn>model\n", [105, 4368, 107]),
    ("«Green.<end_of_turn>", [17224, 236761, 106]),
    ("\n", [107]),
]
_BELOW_X = [30003, 310, 271, 9775, 326, 8631, 247, 4836]
_WRITE_X = [19566, 247, 2380, 326, 20420, 29141, 253, 2748, 15]
NEOX: dict[str, tuple[dict[str, Any], Pieces]] = {  # no template
    "chat": (
        CHAT,
        [
            ("Below is an instruction that describes a task", _BELOW_X),
            (". Write a response that appropriately completes the request.", [15, *_WRITE_X]),
            ("\n\n### Instruction:\n", [187, 187, 4118, 41959, 27, 187]),
            ("Name two colours.", [2402, 767, 22290, 15]),
            ("\n\n### Response:\n", [187, 187, 4118, 19371, 27, 187]),
            ("«Red and blue.<|endoftext|>", [10252, 285, 4797, 15, 0]),
            ("\n\n### Instruction:\n", [187, 187, 4118, 41959, 27, 187]),
            ("One more?", [4041, 625, 32]),
            ("\n\n### Response:\n", [187, 187, 4118, 19371, 27, 187]),
            ("«Green.<|endoftext|>", [18942, 15, 0]),
        ],
    ),
    "alpaca": (
        ADD,
        [
            ("Below is an instruction that describes a task", _BELOW_X),
            (
                ", paired with an input that provides further context",
                [13, 18433, 342, 271, 3280, 326, 3400, 2007, 3634],
            ),
            (". Write a response that appropriately completes the request.", [15, *_WRITE_X]),
            ("\n\n### Instruction:\n", [187, 187, 4118, 41959, 27, 187]),
            ("Add them.", [4717, 731, 15]),
            ("\n\n### Input:\n", [187, 187, 4118, 19832, 27, 187]),
            ("1 2", [18, 374]),
            ("\n\n### Response:\n", [187, 187, 4118, 19371, 27, 187]),
            ("«3<|endoftext|>", [20, 0]),
        ],
    ),
    "completion": (
        DO,
        [
            ("Below is an instruction that describes a task", _BELOW_X),
            (". Write a response that appropriately completes the request.", [15, *_WRITE_X]),
            ("\n\n### Instruction:\n", [187, 187, 4118, 41959, 27, 187]),
            ("Add them.", [4717, 731, 15]),
            ("\n\n### Response:\n", [187, 187, 4118, 19371, 27, 187]),
            ("«3<|endoftext|>", [20, 0]),
        ],
    ),
}


def check(row: dict[str, Any], pieces: Pieces, tokenizer: Path, tmp_path: Path) -> None:
    """The ids are those of the row's conversation, those of pieces after « learned; and what `tokenizers` itself makes
    of the pieces: of each read back, and of all of them in one text."""
    plain = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    for text, ids in pieces:
        assert plain.decode(ids, skip_special_tokens=False) == text.removeprefix("«")
    ids = [token for _, found in pieces for token in found]
    assert plain.encode("".join(text.removeprefix("«") for text, _ in pieces), add_special_tokens=False).ids == ids
    learned = [text.startswith("«") for text, found in pieces for _ in found]
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(row) + "\n")
    config = DataConfig(dataset=str(path), seq_len=128, heldout_sequences=0)
    store = prepare(config, tokenizer, tmp_path / "store", visible=False)
    assert conversations(store) == [(ids, learned)]


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="needs the tokenizer in ../shared/data/tokenizers")
@pytest.mark.parametrize("form", NEOX)
def test_gpt_neox(form: str, tmp_path: Path) -> None:
    check(*NEOX[form], SHARED_DATA / "tokenizers" / "gpt-neox", tmp_path)


def folder_of(name: str) -> Path:
    folder = Path(os.environ.get("REAL_TEACHERS", "")) / name
    if "REAL_TEACHERS" not in os.environ or not folder.is_dir():
        pytest.skip("REAL_TEACHERS names no folder with this model")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("form", SMOLLM2)
def test_smollm2(form: str, tmp_path: Path) -> None:
    check(*SMOLLM2[form], folder_of("smollm2"), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("form", GEMMA)
def test_gemma(form: str, tmp_path: Path) -> None:
    check(*GEMMA[form], folder_of("gemma"), tmp_path)


@pytest.mark.slow
def test_gemma_with_its_template(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder_of("gemma"))
    tokenizer.chat_template = GEMMA_TEMPLATE
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    check(CHAT, GEMMA_CHAT, tmp_path / "tokenizer", tmp_path)


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="needs the instructions in ../shared/data/instructions")
@pytest.mark.parametrize(("name", "form"), [("chat", "chat"), ("heldout", "alpaca")])
def test_real_instructions(name: str, form: str, tmp_path: Path) -> None:
    """Every answer of a real file that fits into a row is learned, to its last character, and EOS."""
    path = SHARED_DATA / "instructions" / f"{name}.jsonl"
    tokenizer = load_tokenizer(SHARED_DATA / "tokenizers" / "gpt-neox")
    config = DataConfig(dataset=str(path), seq_len=2048, heldout_sequences=0)
    store = prepare(config, SHARED_DATA / "tokenizers" / "gpt-neox", tmp_path / "store", visible=False)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    answers = [row["output"] if form == "alpaca" else row["messages"][-1]["content"] for row in rows]
    found = [
        tokenizer.decode([token for token, known in zip(*each, strict=True) if known]) for each in conversations(store)
    ]
    expected = [f"{answer}<|endoftext|>" for answer in answers if answer.strip()]
    assert store.index["instructions"]["form"] == form
    assert (store.index["instructions"]["cut"], store.index["skipped"]["bad_rows"]) == (0, len(rows) - len(expected))
    assert found == expected
