"""Prompts as chats: what of a tokenizer's chat template is asked before it is used, and what is recorded of it.

lm-eval writes the benchmarks' chats (`compress.evaluate.harness.scorer` says how it is told to); what is given as a
prompt is a chat of one message.
"""

import hashlib
from typing import Any

from compress.base.errors import UsageError, reason_of
from compress.base.progress import say_once
from compress.evaluate.config import EvalConfig
from compress.inference.readout import Checkpoint
from compress.model.facts import ModelFacts
from compress.model.tokenizer import chat_template

Message = dict[str, str]
"""`role` (system, user, assistant) and `content`."""
_USER: Message = {"role": "user", "content": "a"}
_SYSTEM: Message = {"role": "system", "content": "a text to be found again"}


def takes_system(tokenizer: Any) -> bool:
    """Whether the template has a place for a system text: some raise an error instead, others pass over it."""
    try:
        return _SYSTEM["content"] in tokenizer.apply_chat_template([_SYSTEM, _USER], tokenize=False)
    except Exception:  # whatever a template does
        return False


def check_chat(config: EvalConfig, model: ModelFacts) -> None:
    """Refuse chats that cannot be written.

    Raises:
        UsageError: the model's tokenizer has no chat template, it cannot be rendered, or has no place for a system text
            that is asked for.
        InputError: there is no usable tokenizer.
    """
    if not config.chat_template:
        return
    if chat_template(model.tokenizer) is None:
        several = model.tokenizer.chat_template
        found = f"has {', '.join(sorted(several))} and no default one" if several else "has none"
        raise UsageError(
            f"eval.chat_template: the tokenizer of {model.name} {found}. Leave the option out to score prompts as "
            "plain text, or put the model's own template beside its tokenizer, as chat_template.jinja."
        )
    try:
        model.tokenizer.apply_chat_template([_USER], tokenize=False, add_generation_prompt=True)
    except Exception as error:  # whatever a template does
        raise UsageError(
            f"eval.chat_template: the chat template of {model.name} cannot be used ({reason_of(error)}). Mend it, or "
            "leave the option out."
        ) from error
    if config.system and not takes_system(model.tokenizer):
        raise UsageError(
            f"eval.system: the chat template of {model.name} has no place for a system text. Leave the option out, or "
            "write the text into the task's own prompt."
        )


def tell_of_template(config: EvalConfig, tokenizer: Any) -> None:
    """Say that a chat model is asked in plain text, or that its template makes each day's prompts others."""
    template = chat_template(tokenizer)
    if template is None or not config.tasks:
        return
    if not config.chat_template:
        say_once(
            "The tokenizer has a chat template, and benchmark prompts are plain text: a model that was trained on "
            "chats is scored as one with --chat-template (in a recipe, eval.chat_template: true)."
        )
    elif "strftime_now" in template:
        say_once("The chat template writes today's date into each prompt: on another day the prompts are others.")


def prompting(config: EvalConfig, tokenizer: Any) -> dict[str, Any] | None:
    """How prompts are written, as the eval JSON has it; None where they are plain text that nothing is put before.

    `chat_template_sha256` is that of the template's text (lm-eval's `chat_template_sha`), null for plain text.
    """
    if not config.chat_template and not config.system:
        return None
    template = chat_template(tokenizer) if config.chat_template else None
    return {
        "chat_template_sha256": None if template is None else hashlib.sha256(template.encode()).hexdigest(),
        "system": config.system or None,
        "fewshot_as_multiturn": config.multiturn,
    }


def chat_ids(checkpoint: Checkpoint, prompt: str, system: str | None) -> list[int]:
    """Token ids of a user's message, after the system text, up to where the model answers.

    The template writes BOS where the model has learned one: the tokenizer adds none.
    """
    said = [{"role": "system", "content": system}] if system else []
    ids: list[int] = checkpoint.tokenizer.apply_chat_template(
        [*said, {"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=False
    )
    return ids
