"""Conversations as tokens: a tokenizer's chat template, or Alpaca's layout, and which tokens are the assistant's.

An answer is what `{% generation %}` encloses, where the template has it. In another template it begins where the prompt
before it ends (the conversation so far, rendered with a generation prompt) and ends with its own text, which is where
the text of another answer would be. It has the token that ends the turn either way: the special token that follows,
perhaps after white space. A conversation whose last answer has none goes on to its end and has EOS there, which are of
the answer.
"""

import functools
import json
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from compress.base.disk import sha256_json
from compress.base.errors import UsageError, reason_of
from compress.model.tokenizer import chat_template

Message = dict[str, Any]
Span = tuple[int, int]
"""Characters of a rendered conversation, half open."""
Render = Callable[[list[Message]], tuple[str, list[Span]]]

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
ALPACA = (
    "{% if messages[0].role == 'system' %}{{ messages[0].content }}{% else %}"
    "Below is an instruction that describes a task"
    "{% if messages[0].input is defined %}, paired with an input that provides further context{% endif %}"
    ". Write a response that appropriately completes the request.{% endif %}"
    "{% for message in messages %}"
    "{% if message.role == 'user' %}{{ '\n\n### Instruction:\n' + message.content }}"
    "{% if message.input is defined %}{{ '\n\n### Input:\n' + message.input }}{% endif %}"
    "{{ '\n\n### Response:\n' }}"
    "{% elif message.role == 'assistant' and loop.previtem is defined and loop.previtem.role == 'user' %}"
    "{% generation %}{{ message.content + eos_token }}{% endgeneration %}"
    "{% elif not (message.role == 'system' and loop.first) %}"
    "{{ raise_exception('Alpaca has a system message, and then user and assistant in turn') }}"
    "{% endif %}{% endfor %}"
)
"""Alpaca's layout (Taori et al. 2023, https://github.com/tatsu-lab/stanford_alpaca), as a chat template. The answer
begins on a line of its own, as in later training code; the first one has it after `### Response:`. Further turns follow
in the same way."""


class Rendered(NamedTuple):
    """A conversation of n tokens."""

    ids: NDArray[np.uint32]
    """[n]"""
    answers: NDArray[np.bool_]
    """[n]: whether the token is of an answer."""
    bytes: NDArray[np.int64]
    """[n]: UTF-8 bytes of text that the token stands for; a character that is split counts with its first token."""


class Unfit(ValueError):
    """A conversation that cannot be rendered; the message says why in a few words."""


def own_template(tokenizer: Any) -> str | None:
    """The tokenizer's chat template; None where it has none.

    Raises:
        UsageError: it has several, and none is the default.
    """
    found = chat_template(tokenizer)
    if found is None and (several := tokenizer.chat_template):
        raise UsageError(
            f"The tokenizer has the chat templates {', '.join(sorted(several))} and no default one: put the one for "
            "these conversations beside it, as chat_template.jinja."
        )
    return found


def template_sha256(tokenizer: Any) -> str:
    """What identifies the layout of a tokenizer's conversations."""
    return sha256_json(own_template(tokenizer) or ALPACA)


class Chat:
    """Renders conversations for a tokenizer."""

    def __init__(self, tokenizer: Any, template: str | None = None) -> None:
        from tokenizers import Tokenizer, processors

        own = template or own_template(tokenizer)
        self.has_template = own is not None
        """Whether the tokenizer has a chat template; Alpaca's layout stands in for it."""
        self.sha256 = template_sha256(tokenizer)
        self._template = own or ALPACA
        self._marks_answers = _GENERATION.search(self._template) is not None
        self._names: dict[str, Any] = dict(tokenizer.special_tokens_map)
        self._eos_id: int = tokenizer.eos_token_id
        special = {token.content: id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._special = np.array(sorted({*special.values(), self._eos_id}))
        self._spelled = re.compile("|".join(map(re.escape, sorted({*special, tokenizer.eos_token}, key=len)[::-1])))
        self._tokenizer = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B")  # may shorten offsets

    def prompt(self, messages: list[Message]) -> NDArray[np.uint32] | Unfit:
        """Ids [n] of a conversation that ends with a user's message, up to where the answer begins; or why it cannot be
        rendered."""
        found = self._tried(messages, functools.partial(self._render, add_generation_prompt=True))
        if isinstance(found, Unfit):
            return found
        return np.array(self._tokenizer.encode(found[0], add_special_tokens=False).ids, dtype=np.uint32)

    def __call__(self, conversations: Sequence[str]) -> list[Rendered | Unfit]:
        """Each of the conversations, as `conversation_or_fault` writes them, or why it cannot be rendered."""
        laid_out = [self._lay_out(json.loads(conversation)) for conversation in conversations]
        texts = [found[0] for found in laid_out if not isinstance(found, Unfit)]
        encodings = iter(self._tokenizer.encode_batch(texts, add_special_tokens=False))
        return [found if isinstance(found, Unfit) else self._read(next(encodings), *found) for found in laid_out]

    def _lay_out(self, messages: list[Message]) -> tuple[str, list[Span], bool] | Unfit:
        """The text, its answers, and whether the last of them ends it; or why there is none."""
        found = self._tried(messages, self._marked if self._marks_answers else self._found)
        return found if isinstance(found, Unfit) else (*found, messages[-1]["role"] == "assistant")

    def _tried(self, messages: list[Message], render: Render) -> tuple[str, list[Span]] | Unfit:
        """What a rendering makes of messages that are fit for the template; or why there is nothing."""
        try:
            if self.has_template:
                messages = [joined(message) for message in messages]
            self._check(messages)
            return render(messages)
        except Unfit as unfit:
            return unfit
        except Exception as error:  # whatever a template raises, or jinja for it
            return Unfit(f"is refused by the chat template ({reason_of(error)})")

    def _check(self, messages: list[Message]) -> None:
        """Refuse text that would become special tokens: they are the template's to write."""
        for message in messages:
            for text in _texts(message):
                if spelled := self._spelled.search(text):
                    raise Unfit(f"spells out the special token {spelled[0]}")

    def _render(self, messages: list[Message], **options: Any) -> tuple[str, list[Span]]:
        from transformers.utils.chat_template_utils import render_jinja_template

        texts, spans = render_jinja_template(
            conversations=[messages], chat_template=self._template, **options, **self._names
        )
        return texts[0], [(first, last) for first, last in spans[0]] if spans else []

    def _marked(self, messages: list[Message]) -> tuple[str, list[Span]]:
        """The text, and what the template says is the assistant's."""
        text, spans = self._render(messages, return_assistant_tokens_mask=True)
        if not any(first < last for first, last in spans):
            raise Unfit("has no token in the {% generation %} of the chat template: mend the template")
        return text, spans

    def _found(self, messages: list[Message]) -> tuple[str, list[Span]]:
        """The text, and its answers as they are found between prompts."""
        text, _ = self._render(messages)
        places = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
        return text, [
            (self._prompt_length(text, messages[:place]), self._end(text, messages, place)) for place in places
        ]

    def _prompt_length(self, text: str, messages: list[Message]) -> int:
        if not messages:
            raise Unfit("begins with an answer, to no prompt")
        prompt, _ = self._render(messages, add_generation_prompt=True)
        if not text.startswith(prompt):
            raise Unfit("has an answer whose beginning the chat template does not tell: " + _ADVICE)
        return len(prompt)

    def _end(self, text: str, messages: list[Message], place: int) -> int:
        """Where an answer ends in the text: after its own text, which stands where another answer's would."""
        answer = said(messages[place])
        other, _ = self._render([*messages[:place], _saying(messages[place], _OTHER), *messages[place + 1 :]])
        begin = other.find(_OTHER)
        for written in (answer, answer.strip()):
            if begin >= 0 and text[:begin] == other[:begin] and text.startswith(written, begin):
                return begin + len(written)
        if place == len(messages) - 1:
            return len(text)  # rewritten by the template: all that is left
        raise Unfit("has an answer that the chat template does not repeat as it is written: " + _ADVICE)

    def _read(self, encoding: Any, text: str, spans: list[Span], ends: bool) -> Rendered:
        ids = np.array(encoding.ids, dtype=np.uint32)
        first, last = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2).T
        answers = np.zeros(len(ids), np.bool_)
        special = np.isin(ids, self._special)
        blank = np.array([not text[a:b].strip() for a, b in zip(first, last, strict=True)], np.bool_) & ~special
        for begin, end in spans:
            within = (first < end) & (np.maximum(last, first + 1) > begin)
            answers |= within & (end > begin)
        complete = [_end_turn(answers, special, blank, place) for place in _last_places(answers)]
        before = np.cumsum([0, *(len(character.encode()) for character in text)])
        sizes = np.diff(before[np.maximum.accumulate(last)], prepend=0)
        if ends and complete and not complete[-1]:
            answers[np.flatnonzero(answers)[-1] :] = True
            ids, sizes = np.append(ids, np.uint32(self._eos_id)), np.append(sizes, 0)
            answers = np.append(answers, True)
        return Rendered(ids, answers, np.where(np.append(special, [True] * (len(ids) - len(special))), 0, sizes))


_OTHER = "\N{SYMBOL FOR UNIT SEPARATOR}answer\N{SYMBOL FOR UNIT SEPARATOR}"
"""An answer that no conversation has."""
_ADVICE = "enclose what the assistant writes in {% generation %} and {% endgeneration %}"


def said(message: Message) -> str:
    """The text of a message, whose content may be a list of texts and images."""
    content: Any = message["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def _saying(message: Message, text: str) -> Message:
    """The same message with another text."""
    content: Any = text if isinstance(message["content"], str) else [{"type": "text", "text": text}]
    return {**message, "content": content}


def _texts(message: Message) -> list[str]:
    """All that a message is given to the template as."""
    return [said(message) if name == "content" else text for name, text in message.items()]


def joined(message: Message) -> Message:
    """A message with Alpaca's input below its instruction."""
    given = message.get("input")
    rest = {key: value for key, value in message.items() if key != "input"}
    return rest if given is None else {**rest, "content": f"{message['content']}\n\n{given}"}


def _last_places(answers: NDArray[np.bool_]) -> list[int]:
    """The last place of each run of answers."""
    return np.flatnonzero(answers & ~np.append(answers[1:], False)).tolist()


def _end_turn(answers: NDArray[np.bool_], special: NDArray[np.bool_], blank: NDArray[np.bool_], place: int) -> bool:
    """Let the run of answers that ends at `place` have the special token that ends its turn; whether it has one."""
    told = place
    while told >= 0 and answers[told] and blank[told]:
        told -= 1
    if special[told]:
        return True
    following = _first(~blank[place + 1 :])
    if following is None or not special[place + 1 + following]:
        return False
    answers[place + 1 : place + 2 + following] = True
    return True


def _first(values: Iterable[Any]) -> int | None:
    return next((place for place, value in enumerate(values) if value), None)
