"""Instruction data: which of these forms rows have, found from their columns, and each row as a conversation.

alpaca      {"instruction": ..., "input": ..., "output": ...}; `input` may be empty or absent
chat        {"messages": [{"role": ..., "content": ...}, ...]}, or "conversations" of {"from": ..., "value": ...}
completion  {"prompt": ..., "completion": ...}, two texts or two lists of messages
images      a chat or a completion with "images" (or "image") beside it; only where it is asked for
"""

import base64
import binascii
import json
from collections.abc import Collection, Mapping
from typing import Any, Literal, NamedTuple

FormName = Literal["text", "alpaca", "chat", "completion", "images"]
NO_ANSWER = "has no answer"

_COLUMNS: dict[str, tuple[tuple[str, ...], ...]] = {
    "chat": (("messages",), ("conversations",)),
    "alpaca": (("instruction", "output"),),
    "completion": (("prompt", "completion"),),
    "images": tuple(
        (images, *said) for images in ("images", "image") for said in (("messages",), ("prompt", "completion"))
    ),
}
"""What rows of a form must have: one of these."""
_TOLD = ("chat", "alpaca", "completion")
"""The forms that are found by their columns."""
_OPTIONAL = {"alpaca": ("input",)}
_ANSWERS = {"alpaca": ("output",), "completion": ("completion",)}
"""Columns that rows to be answered need not have."""
_ROLES = {"human": "user", "gpt": "assistant"}
"""What ShareGPT's spelling calls them."""

Messages = list[dict[str, str]]


class Form(NamedTuple):
    """What rows hold, and in which columns."""

    name: FormName
    columns: tuple[str, ...]
    answered: bool = True
    """Whether a row has an answer; else it is read up to where one is to be written, whatever follows."""

    @property
    def is_text(self) -> bool:
        """Whether a row is a plain text, not a conversation."""
        return self.name == "text"

    @property
    def has_images(self) -> bool:
        """Whether a row has images beside its conversation."""
        return self.name == "images"

    @property
    def required(self) -> tuple[str, ...]:
        """Those of the columns that every row has."""
        optional = _OPTIONAL.get(self.name, ()) + (() if self.answered else _ANSWERS.get(self.name, ()))
        return tuple(column for column in self.columns if column not in optional)


class Asked(NamedTuple):
    """What rows are to be read as: `data.form` and `data.text_column`, and whether they have answers."""

    form: FormName | Literal["auto"]
    text_column: str
    answered: bool = True

    def find(self, columns: Collection[str]) -> Form | None:
        """The form of rows with these columns; None where it is none that was asked for. A text comes first."""
        if self.form in ("auto", "text") and self.text_column in columns:
            return Form("text", (self.text_column,))
        for name, choices in _COLUMNS.items():
            for required in choices:
                form = Form(name, (*required, *_OPTIONAL.get(name, ())), self.answered)  # type: ignore[arg-type]
                found = self.form == name or (self.form == "auto" and name != "images")
                if found and set(form.required) <= set(columns):
                    return form
        return None

    @property
    def first(self) -> Form:
        """The form whose absence is an error."""
        if self.form == "auto" or self.form == "text":
            return Form("text", (self.text_column,))
        return Form(self.form, _COLUMNS[self.form][0], self.answered)


def how_to_say(form: Form) -> str:
    """What to do about columns that are missing."""
    if form.is_text:
        return (
            "Set data.text_column to the one with the text; instructions have the columns "
            f"{', or '.join(' and '.join(choice) for name in _TOLD for choice in _COLUMNS[name])}."
        )
    choices = " or ".join(" and ".join(choice) for choice in _COLUMNS[form.name])
    return f"data.form: {form.name} reads {choices}: rename the columns, or choose another form."


def conversation_or_fault(row: Mapping[str, Any], form: Form) -> tuple[str | None, str | None]:
    """A row as the JSON of its messages [{"role", "content"}, ...], or what is wrong with it in a few words.

    A row with images is {"messages", "images"}: contents are lists of {"type": "text", "text"} and {"type": "image"},
    and an image is {"bytes": base64} or, of a file, {"path"}.

    Alpaca's input stands beside its instruction, as "input" of the user's message. Rows to be answered end with what
    the user says last.
    """
    try:
        return (_with_images(row, form) if form.has_images else _conversation(row, form)), None
    except ValueError as error:
        return None, str(error)


def _conversation(row: Mapping[str, Any], form: Form) -> str:
    if form.name == "alpaca":
        user = {"role": "user", "content": _text(row, "instruction")}
        if row.get("input") and (given := _text(row, "input")).strip():
            user["input"] = given
        messages = [user, *([{"role": "assistant", "content": _text(row, "output")}] if form.answered else [])]
    elif form.name == "completion":
        messages = [*_side(row, "prompt", "user"), *(_side(row, "completion", "assistant") if form.answered else [])]
    else:
        messages = _messages(row, form.columns[0])
    if not form.answered:
        return _as_json(_to_answer(messages))
    if not any(message["role"] == "assistant" and message["content"].strip() for message in messages):
        raise ValueError(NO_ANSWER)
    return _as_json(messages)


def _to_answer(messages: Messages) -> Messages:
    """A conversation up to what the user says last."""
    places = [place for place, message in enumerate(messages) if message["role"] == "user"]
    if not places or not messages[places[-1]]["content"].strip():
        raise ValueError("has nothing that a user says")
    return messages[: places[-1] + 1]


def _as_json(messages: Messages) -> str:
    found = json.dumps(messages, ensure_ascii=False)
    try:
        found.encode()
    except UnicodeEncodeError:
        raise ValueError("holds half of a surrogate pair, which is not Unicode text") from None
    return found


def _side(row: Mapping[str, Any], column: str, role: str) -> Messages:
    """A prompt or a completion: one message of the role, or several."""
    if isinstance(row[column], list):
        return _messages(row, column)
    return [{"role": role, "content": _text(row, column)}]


def _messages(row: Mapping[str, Any], column: str) -> Messages:
    return [_message(message) for message in _list_of_messages(row, column)]


def _list_of_messages(row: Mapping[str, Any], column: str) -> list[Mapping[str, Any]]:
    given = row[column]
    if not isinstance(given, list) or not all(isinstance(message, dict) for message in given):
        raise ValueError(f"holds {_kind(given)} in {column!r}, not a list of messages")
    return given


def _message(message: Mapping[str, Any]) -> dict[str, str]:
    role, content = ("role", "content") if message.get("role") is not None else ("from", "value")
    if not isinstance(message.get(role), str):
        raise ValueError(f"has a message without 'role' (or 'from'), only {', '.join(message) or 'nothing'}")
    said = _text(message, content)
    return {"role": _ROLES.get(message[role], message[role]), "content": said}


def _text(row: Mapping[str, Any], column: str) -> str:
    if not isinstance(row.get(column), str):
        raise ValueError(f"holds {_kind(row.get(column))} in {column!r}, not text")
    found: str = row[column]
    return found


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__


def _with_images(row: Mapping[str, Any], form: Form) -> str:
    given = row[form.columns[0]]
    images = [_image(image) for image in (given if isinstance(given, list) else [given])]
    if form.columns[1:] == ("messages",):
        messages = [_parts_of(message) for message in _list_of_messages(row, "messages")]
    else:
        messages = [part for name, role in _SIDES for part in _side_of_parts(row, name, role)]
    answers = [message for message in messages if message["role"] == "assistant"]
    if not any(part.get("text", "").strip() for message in answers for part in message["content"]):
        raise ValueError(NO_ANSWER)
    places = sum(part["type"] == "image" for message in messages for part in message["content"])
    if not places:  # images come first
        asked = next((message for message in messages if message["role"] == "user"), messages[0])
        asked["content"][:0] = [{"type": "image"} for _ in images]
    elif places != len(images):
        raise ValueError(f"has {len(images)} images, and places for {places}")
    found = json.dumps({"messages": messages, "images": images}, ensure_ascii=False)
    try:
        found.encode()
    except UnicodeEncodeError:
        raise ValueError("holds half of a surrogate pair, which is not Unicode text") from None
    return found


_SIDES = (("prompt", "user"), ("completion", "assistant"))


def _side_of_parts(row: Mapping[str, Any], column: str, role: str) -> list[dict[str, Any]]:
    if isinstance(row[column], list):
        return [_parts_of(message) for message in _list_of_messages(row, column)]
    return [{"role": role, "content": [{"type": "text", "text": _text(row, column)}]}]


def _parts_of(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message whose content is a list of texts and images."""
    content = message.get("content")
    if not isinstance(content, list):
        said = _message(message)
        return {"role": said["role"], "content": [{"type": "text", "text": said["content"]}]}
    if not isinstance(message.get("role"), str):
        raise ValueError(f"has a message without 'role', only {', '.join(message) or 'nothing'}")
    return {"role": _ROLES.get(message["role"], message["role"]), "content": [_part(part) for part in content]}


def _part(part: Any) -> dict[str, str]:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "image":
        return {"type": "image"}
    if kind == "text":
        return {"type": "text", "text": _text(part, "text")}
    raise ValueError(f"has content of the type {kind!r}, and only text and image are read")


def _image(given: Any) -> dict[str, str]:
    """An image as a path or as bytes, which JSON has as base64."""
    content, path = (given.get("bytes"), given.get("path")) if isinstance(given, dict) else (None, given)
    if isinstance(content, bytes):
        return {"bytes": base64.b64encode(content).decode()}
    if isinstance(content, str):
        try:
            return {"bytes": base64.b64encode(base64.b64decode(content, validate=True)).decode()}
        except binascii.Error:
            raise ValueError("has an image whose bytes are no base64") from None
    if isinstance(path, str) and path:
        return {"path": path}
    raise ValueError("has an image that is neither a path nor bytes")
