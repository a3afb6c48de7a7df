"""What kind of language model a config is of: causal, which predicts the next token, or masked, which fills blanks.

A vision-language model is a causal one whose prompt may have images: a tower and a projector make states of them, which
stand in place of some tokens' embeddings.
"""

import re
from typing import Any, Literal

from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMaskedLM
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
)

from compress.base.errors import InputError, UsageError

Kind = Literal["causal", "masked"]

VISION_TYPES = (
    "gemma3", "idefics3", "internvl", "llava", "llava_next", "mistral3", "paligemma", "qwen2_5_vl", "qwen2_vl",
    "smolvlm",
)  # fmt: skip
"""Vision-language models whose language model was found to see images in its input embeddings alone, and which were
cut, with images, by tests/prune/test_vision.py."""
_BEYOND_EMBEDDINGS = {
    **dict.fromkeys(("qwen3_vl", "qwen3_vl_moe"), "its first layers are given features of the image by their number"),
    "mllama": "layers of its own, by their number, look at the image",
    "idefics": "layers between its layers look at the image",
}
"""Those whose layers are given images in other ways, and in which."""
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
    can_be_causal = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING or hasattr(config, "auto_map") or sees_images(config)
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
    if kind_of(config) == "masked":
        return AutoModelForMaskedLM
    return AutoModelForImageTextToText if sees_images(config) else AutoModelForCausalLM


def sees_images(config: Any) -> bool:
    """Whether a config is of a vision-language model."""
    return config.model_type in VISION_TYPES


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


def require_text_alone(config: Any, name: str, what: str) -> None:
    """Refuse `what` of a vision-language model that transformers does not load as a causal one too.

    Raises:
        UsageError: the model called `name` is one.
    """
    if sees_images(config) and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UsageError(
            f"{what} is not for vision-language models, and {name} is one ({config.model_type}): docs/vision.md has "
            "what can be done with those."
        )


def _neither(config: Any, names: tuple[str, ...]) -> InputError:
    if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        why = _BEYOND_EMBEDDINGS.get(config.model_type, "nobody has found out how its language model is given images")
        return InputError(
            f"A {config.model_type} model cannot be cut by layers: {why}. Of vision-language models, compress cuts "
            f"{', '.join(VISION_TYPES)}; or give a language model without images, saved with AutoModelForCausalLM."
        )
    named = f"a {config.model_type} model" if not names else f"this {config.model_type} model is a {', '.join(names)}"
    return InputError(
        f"compress cuts causal and masked language models; {named}, which is neither. Give the language model that it "
        "was made from, or its weights saved with AutoModelForCausalLM or AutoModelForMaskedLM."
    )
