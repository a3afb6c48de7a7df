"""Chat templates of the kinds that there are, and what each makes of a conversation, written by hand.

In what is written by hand, « and » enclose what is to be learned.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from helpers import byte_tokenizer

from compress.data import TokenStore
from compress.data.store.marks import Marks

SPECIAL = ["<|im_start|>", "<|im_end|>", "<s>", "</s>"]  # ids 257 to 260
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def chatml(answer: str) -> str:
    """ChatML whose answers are marked by the template; `answer` is what is between their role and the next turn."""
    return (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
        "{% if m.role == 'assistant' %}" + answer + "{% else %}{{ m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    )


GENERATION = {
    "all": chatml("{% generation %}{{ m.content + '<|im_end|>\n' }}{% endgeneration %}"),
    "to the end of the turn": chatml("{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"),
    "content": chatml("{% generation %}{{ m.content }}{% endgeneration %}{{ '<|im_end|>\n' }}"),
}
INST = (  # Llama 2's, which refuses what is no turn of its own
    "{{ bos_token }}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m.role == 'user' %}{{ '[INST] ' + m.content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
THINKING = (  # Qwen 3's: only the last answer has its thoughts, empty ones where it has none
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
BARE = (  # nothing ends a turn
    "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


def chat_tokenizer(template: str | None = None) -> Any:
    """A byte tokenizer with special tokens and a chat template."""
    tokenizer: Any = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL})
    tokenizer.chat_template = template
    return tokenizer


def by_hand(written: str, tokenizer: Any) -> tuple[list[int], list[bool]]:
    """Ids, and whether each is to be learned, of a conversation written by hand, piece by piece."""
    ids: list[int] = []
    learned: list[bool] = []
    for number, piece in enumerate(written.replace("»", "«").split("«")):
        found = tokenizer(piece, add_special_tokens=False).input_ids
        ids += found
        learned += [number % 2 == 1] * len(found)
    return ids, learned


def conversations(store: TokenStore) -> list[tuple[list[int], list[bool]]]:
    """The conversations in a store's training rows."""
    return conversations_in(store.rows(range(store.num_rows)), store.marks(range(store.num_rows)))


def conversations_in(ids: Any, marks: Marks | None) -> list[tuple[list[int], list[bool]]]:
    """The conversations in rows [n, S], without what fills rows up, row by row."""
    assert marks is not None
    found = []
    for row, answers, starts in zip(ids, marks.answers, marks.starts, strict=True):
        ends = [*np.flatnonzero(starts)[1:], len(row)]
        for first, last in zip(np.flatnonzero(starts), ends, strict=True):
            if answers[first:last].any():
                found.append((row[first:last].tolist(), answers[first:last].tolist()))
    return found


def write_chats(path: Path, chats: list[Any]) -> Path:
    """JSON lines of {"messages"}; a chat is texts of user and assistant in turn, or messages."""
    roles = ("user", "assistant")
    rows = [
        [{"role": roles[i % 2], "content": text} if isinstance(text, str) else text for i, text in enumerate(chat)]
        for chat in chats
    ]
    path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    return path


def answers_alone(model: Any, found: list[tuple[list[int], list[bool]]]) -> tuple[float, int]:
    """Sum of transformers' own losses over what is to be learned of conversations run alone, nats, and its tokens."""
    import torch

    total, count = 0.0, 0
    for ids, learned in found:
        labels = [token if known else -100 for token, known in zip(ids, learned, strict=True)]
        tokens = sum(learned[1:])
        with torch.no_grad():
            loss = model(torch.tensor([ids]), labels=torch.tensor([labels])).loss
        total, count = total + float(loss) * tokens, count + tokens
    return total, count
