"""How a model is to write."""

from typing import Annotated, Literal

from pydantic import Field

from compress.base.config import config
from compress.base.currency import FREE
from compress.base.units import Count

AtLeastOne = Annotated[Count, Field(ge=1)]


@config
class GenerateConfig:
    """Options of `compress generate`."""

    new_tokens: AtLeastOne = 256
    """Tokens of an answer at most, its end included."""
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """Divides the logits; 1 draws from the model's own distribution, 0 takes the likeliest token each time."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Draw from the likeliest tokens that have this share of the probability together."""
    samples: AtLeastOne = 1
    """Answers to each prompt."""
    limit: AtLeastOne | None = None
    """Prompts to take, from the first; None takes all, of local files."""
    prompt_tokens: AtLeastOne = 64
    """Tokens of a text that are its prompt, from its beginning."""
    chat: bool = False
    """Take each text as what a user says to the model, rather than as what it is to continue."""
    rewrite: bool = False
    """Write the answers of conversations anew, with each row's own answer as a hint. What comes to the same is taken;
    else the row's own stays."""
    unfinished: Literal["auto", "keep", "leave_out"] = "auto"
    """Answers that `new_tokens` cut off: auto keeps those of texts, and leaves out those of conversations, which would
    teach to end midway. Either is counted."""
    seed: Count = 0
    """Of the draws: each answer has its own, whatever is written beside it."""
    text_column: str = "text"
    """Column (or JSON key) of texts."""
    form: Literal["auto", "text", "alpaca", "chat", "completion"] = "auto"
    """What rows hold, as `data.form`; of conversations what follows the user's last message is left out."""
    batch_tokens: Annotated[AtLeastOne, FREE] = 8192
    """Tokens that the key-value caches of a batch hold, at most. Others may round otherwise."""
    engine: Literal["auto", "own", "vllm"] = "auto"
    """What writes: auto takes vLLM where it is installed and there is a CUDA device, else our own decoding."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Weights and activations; `auto` is the checkpoint's own on an accelerator and float32 on the CPU."""
    device: Annotated[str | None, FREE] = None
    """torch device (`cpu`, `cuda:1`); None takes the accelerator there is, else the CPU."""

    def __post_init__(self) -> None:
        if self.rewrite and (self.chat or self.form == "text"):
            raise ValueError("rewrite is of conversations, which have an answer: leave `chat` and `form: text` out")
