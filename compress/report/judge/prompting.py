"""How models were asked: in plain text or as in a chat, in words, and whether two of them were asked alike."""

from collections.abc import Mapping

from compress.report.run_files import Record

_LONGEST = 60
_HASH = 8


def asked(record: Record) -> Record:
    """What an evaluation asked for of its prompts, whatever the model's template: a model's own is no other way."""
    how = record.get("prompting") or {}
    return {
        "chat": how.get("chat_template_sha256") is not None,
        "system": how.get("system"),
        "multiturn": bool(how.get("fewshot_as_multiturn")),
    }


def prompting_words(record: Record) -> str:
    """`plain text`, or `chats in the template 1a2b3c4d, solved examples as turns, after the system text “...”`."""
    how = asked(record)
    if how["chat"]:
        turns = "as turns" if how["multiturn"] else "in one message with the question"
        said = [f"chats in the template {_short_hash(record)}", f"solved examples {turns}"]
    else:
        said = ["plain text"]
    if how["system"]:
        text = " ".join(how["system"].split())
        said.append(f"after the system text “{text if len(text) <= _LONGEST else text[: _LONGEST - 1] + '…'}”")
    return ", ".join(said)


def common_prompting(evals: Mapping[str, Record]) -> str:
    """`prompts are chats in the template 1a2b3c4d, ...`, where all models were asked so; empty where all were
    asked in plain text, or not alike."""
    scored = [record for record in evals.values() if record["tasks"]]
    words = {prompting_words(record) for record in scored}
    return f"prompts are {words.pop()}" if len(words) == 1 and any(asked(scored[0]).values()) else ""


def prompting_mismatches(evals: Mapping[str, Record], labels: Mapping[str, str]) -> list[str]:
    """Which models were asked otherwise than the first that was, or in another template."""
    scored = [key for key in labels if evals[key]["tasks"]]
    said = []
    for key in scored[1:]:
        first, other = evals[scored[0]], evals[key]
        words = (f"The prompts of the {labels[key]} are {prompting_words(other)}", prompting_words(first))
        if asked(first) != asked(other):
            said.append(f"{words[0]}; those of the {labels[scored[0]]} are {words[1]}: their scores are not related.")
        elif asked(first)["chat"] and _short_hash(first) != _short_hash(other):
            said.append(f"{words[0]}; those of the {labels[scored[0]]} are in another, {_short_hash(first)}.")
    return said


def _short_hash(record: Record) -> str:
    return str(record["prompting"]["chat_template_sha256"])[:_HASH]
