"""What to measure, and at what shapes."""

import dataclasses
from typing import Annotated, Any, Literal, Self

from pydantic import Field

from compress.base.config import config
from compress.base.currency import PLACE, Before
from compress.base.units import Count, Every
from compress.evaluate.presets import expand

AtLeastOne = Annotated[Count, Field(ge=1)]


@config
class DuringConfig:
    """Tasks on which a student is scored while it is trained."""

    tasks: list[str]
    """As `eval.tasks`."""
    items: AtLeastOne = 200
    """Of each task, its first: the same every time."""
    every: Every = 0.1
    """Steps from one time to the next, or a share of all steps (`10%` or 0.1), besides the start and the end."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "tasks", expand(self.tasks))
        if not self.tasks:
            raise ValueError("name the tasks to score: {tasks: [arc_easy]}")


@config
class EvalConfig:
    """Options of `compress eval` and of a recipe's `eval:` section."""

    tasks: list[str] = dataclasses.field(default_factory=list)
    """lm-eval task, group or tag names, our `squad_completion_verbatim` and `identity`, and presets: paper, torchtune,
    quick.

    `mmlu@5` asks for 5 shots. A preset is replaced by its tasks, so that a manifest names what was scored.
    """
    num_fewshot: Annotated[int, Field(ge=0)] | None = None
    """Solved examples before each question of a task named without `@`; None leaves the task's own number.

    A task that fixes 0 keeps 0.
    """
    chat_template: Annotated[bool, Before(False)] = False
    """Write prompts as chats, in the template of the model's tokenizer: for models that were trained on chats.

    Benchmark prompts, as by lm-eval's `apply_chat_template`, and those that are given for samples and responses.
    """
    system: Annotated[str | None, Before(None)] = None
    """System message of each chat, before the task's own description; without a template, text before each prompt."""
    fewshot_as_multiturn: Annotated[bool | None, Before(None)] = None
    """Whether solved examples are turns of the chat before the question, or part of its one message; None: of a chat
    they are turns."""
    identity: Annotated[list[str], Before([])] = dataclasses.field(default_factory=list)
    """Names of the teacher's family and maker, one of which the task `identity` looks for in each answer; by default
    those that the teacher's name and chat template tell."""
    limit: AtLeastOne | None = None
    """Items a task, from its first; None takes all."""
    datasets_root: Annotated[str | None, PLACE] = None
    """Folder of benchmark data sets, ORG/NAME inside it as `hf download --local-dir` lays them out."""
    task_folder: Annotated[str | None, PLACE] = None
    """Folder of further lm-eval task YAMLs; a task of a name already known replaces it."""
    other_text: Annotated[str | None, PLACE, Before(None)] = None
    """SOURCE: Text of another kind, on which loss and fidelity are measured too, as on the held-out text: a SOURCE as
    in `distill --data`, or a token store."""
    heldout_sequences: AtLeastOne = 100
    """Rows of held-out text, and of other text, for loss, perplexity and fidelity."""
    heldout_seq_len: Annotated[Count, Field(ge=2)] = 1024
    """Tokens a row when the text is a raw source; a token store has its own row length."""
    text_column: str = "text"
    """Column (or JSON key) of raw held-out text, and of other text."""
    batch_tokens: AtLeastOne = 8192
    """Tokens a forward pass, padding included; at least one sequence always runs. A matter of memory and speed, and no
    optimizer step, as `distill.batch_tokens` is."""
    mask_every: Annotated[Count, Before(8)] = 8
    """Of a masked language model: how far apart the tokens are that are hidden at once; as many passes score a row. 0
    hides one token at a time, as pseudo-perplexity is defined."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Weights and activations; `auto` is the checkpoint's own on an accelerator and float32 on the CPU."""
    device: str | None = None
    """torch device (`cpu`, `cuda:1`); None takes the accelerator there is, else the CPU."""
    speed: bool = True
    """Whether to measure speed, latency and peak memory."""
    speed_batch: AtLeastOne = 1
    """Sequences side by side in the speed measurement."""
    speed_batches: list[AtLeastOne] = dataclasses.field(default_factory=lambda: [8])
    """Further numbers of sequences side by side to measure."""
    speed_prompt_tokens: AtLeastOne = 128
    """Prompt length of the speed measurement, tokens."""
    speed_decode_tokens: Count = 32
    """Tokens decoded after the prompt, one at a time through the key-value cache."""
    speed_repeats: AtLeastOne = 7
    """Measured rounds, after two that only warm up; the figures are medians over them."""
    speed_price_per_hour: Annotated[float, Field(gt=0)] | None = None
    """Price of the machine, in any currency, an hour: adds the cost of a million tokens."""
    samples: Count = 4
    """Sample continuations to write."""
    sample_prompt_tokens: AtLeastOne = 48
    """Prompt length, tokens, of a sample cut from held-out text."""
    sample_tokens: AtLeastOne = 64
    """Longest continuation, tokens."""
    responses: Count = 16
    """Prompts, cut as samples are, that model and teacher both continue to see how alike they write."""
    draft_tokens: Annotated[list[AtLeastOne], Before([])] = dataclasses.field(default_factory=list)
    """Numbers of tokens that the model drafts for its teacher before each of its steps, to measure what that gains, on
    the prompts of `responses`: acceptance and speed, greedy and at temperature 1."""
    seed: int = 1234
    """Seed of few-shot choice (lm-eval's default) and of random prompts."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "tasks", expand(self.tasks))
        if self.fewshot_as_multiturn and not self.chat_template:
            raise ValueError("fewshot_as_multiturn needs a chat whose turns they are: write chat_template: true too")
        if self.draft_tokens and not self.responses:
            raise ValueError("draft_tokens are measured on the prompts of responses, which are 0: ask for some")

    @property
    def multiturn(self) -> bool:
        """Whether solved examples are turns of a chat."""
        return self.chat_template if self.fewshot_as_multiturn is None else self.fewshot_as_multiturn

    def without_speed(self) -> Self:
        """The same scores, and no speed: other options of the speed do not make scores stale."""
        return dataclasses.replace(self, **untimed())

    def of_masked(self) -> Self:
        """The same of a masked language model, which writes nothing: no samples, no responses, no speed of writing."""
        return dataclasses.replace(self, **untimed(), samples=0, responses=0)

    def only_speed(self) -> Self:
        """The same speed, and no scores: other tasks do not make it stale."""
        return dataclasses.replace(self, **unscored())


def untimed() -> dict[str, Any]:
    """The options of the speed when it is not measured."""
    defaults = dataclasses.asdict(EvalConfig())
    return {name: value for name, value in defaults.items() if name.startswith("speed")} | {"speed": False}


def unscored() -> dict[str, Any]:
    """The options that the speed does not depend on, when nothing is scored."""
    defaults = dataclasses.asdict(EvalConfig())
    return {
        n: value for n, value in defaults.items() if not n.startswith("speed") and n not in ("dtype", "device", "seed")
    }
