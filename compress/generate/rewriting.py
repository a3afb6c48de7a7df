"""A data set's answers written anew by the model that is given them as a hint, and which of those are to be taken.

Self-distillation of a data set (Yang et al. 2024, arXiv:2402.13669) keeps a student nearer to its teacher than the data
set's own answers do (Thangarasa et al. 2024, arXiv:2410.09982).
"""

import re

_HINT = (
    "Below are an instruction that describes a task along with a reference answer. Using the reference answer as a "
    "guide, write your own response.\n\n### Instruction:\n{asked}\n\n### Reference Answer:\n{reference}\n\n"
    "### Response:"
)
"""What is asked, as in figure 9 of the first paper."""
_FINAL = (re.compile(r"####\s*(.+?)\s*$", re.MULTILINE), re.compile(r"\\boxed\{([^{}]+)\}"))
"""How data sets of mathematics mark a final answer (GSM8K, MATH)."""
_SHORT_WORDS = 4
_WORD = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?|\w+")

Messages = list[dict[str, str]]


def with_hint(messages: Messages, reference: str) -> Messages:
    """The conversation, whose last message is a user's, with that message asking for an answer like the reference."""
    *before, last = messages
    return [*before, {**last, "content": _HINT.format(asked=last["content"], reference=reference)}]


def agrees(answer: str, reference: str) -> bool:
    """Whether an answer comes to what the reference comes to.

    The final answer that the reference marks, or all of it where that is at most four words, has to be in the answer,
    apart from case and punctuation. Of a longer one nothing can be told, and any answer agrees.
    """
    final = next((found[-1] for pattern in _FINAL if (found := pattern.findall(reference))), None)
    wanted = _words(reference if final is None else final)
    if final is None and len(wanted) > _SHORT_WORDS:
        return True
    given = _words(answer)
    return any(given[start : start + len(wanted)] == wanted for start in range(len(given) - len(wanted) + 1))


def _words(text: str) -> list[str]:
    return [word.replace(",", "").casefold() for word in _WORD.findall(text)]
