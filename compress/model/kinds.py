"""What kind of language model a config is of: causal, which predicts the next token, or masked, which fills blanks."""

import re
from typing import Any, Literal

from transformers import AutoModelForCausalLM, AutoModelForMaskedLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

from compress.base.errors import InputError, UsageError

Kind = Literal["causal", "masked"]

_MASKED = "ForMaskedLM"
_OTHER_HEADS = re.compile(r"For(\w*Classification|QuestionAnswering|MultipleChoice|NextSentencePrediction)$")
_NO_HEAD = re.compile(r"(?<!LMHead)Model$|ForPreTraining$")


def kind_of(config: Any) -> Kind:
    """The kind of the model that a config describes, by the class that it names in `architectures`; of one that names
    none, causal where transformers has such a class for its type.

    Raises:
        InputError: it is of neither kind.
    """
    names = tuple(config.architectures or ())
    can_be_masked = type(config) in MODEL_FOR_MASKED_LM_MAPPING
    can_be_causal = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING or hasattr(config, "auto_map")
    if any(name.endswith(_MASKED) for name in names):
        return "masked"
    if any(map(_OTHER_HEADS.search, names)) or (can_be_masked and any(map(_NO_HEAD.search, names))):
        raise _neither(config, names)
    if can_be_causal:
        return "causal"
    if can_be_masked and not names:
        return "masked"
    raise _neither(config, names)


def model_class(config: Any) -> Any:
    """The auto class of transformers that makes and loads the model of a config; raises as `kind_of`."""
    return AutoModelForMaskedLM if kind_of(config) == "masked" else AutoModelForCausalLM


def is_masked(model: Any) -> bool:
    """Whether a model in memory is a masked language model."""
    return type(model).__name__.endswith(_MASKED)


def require_causal(config: Any, name: str, what: str) -> None:
    """Refuse `what` of a masked language model.

    Raises:
        UsageError: the model called `name` is one.
    """
    if kind_of(config) == "masked":
        raise UsageError(
            f"{what} is for causal language models, and {name} is a masked one ({config.model_type}): docs/encoders.md "
            "has what can be done with those."
        )


def _neither(config: Any, names: tuple[str, ...]) -> InputError:
    named = f"a {config.model_type} model" if not names else f"this {config.model_type} model is a {', '.join(names)}"
    return InputError(
        f"compress cuts causal and masked language models; {named}, which is neither. Give the language model that it "
        "was made from, or its weights saved with AutoModelForCausalLM or AutoModelForMaskedLM."
    )
