"""What the pages rely on in the records they are made from; everything else in a record may be anything or absent."""

from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from compress.base.errors import InputError

T = TypeVar("T")

Object = dict[str, Any]
Quartiles = Annotated[list[float], Field(min_length=2)]


class _Shape(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")


class Sample(_Shape):
    """A prompt and what a model made of it."""

    prompt: str
    continuation: str


class Answers(_Shape):
    """How a model answers the items of a task."""

    chosen: list[int] | None = None
    gold: list[int] | None = None


class Task(_Shape):
    """Scores of a task, of which `primary` names the metric to judge it by."""

    primary: str | None
    members: list[str] | None = None
    num_fewshot: int | None = None
    data_sha256: str | None = None
    answers: Answers | None = None


class DraftTokens(_Shape):
    """What drafts of one length gave."""

    draft_tokens: int
    speedup: float
    speedup_quartiles: Quartiles


class Drafting(_Shape):
    """What drafts gave in one way to write."""

    tokens_per_s: float
    by_draft_tokens: list[DraftTokens]


class MeasuredDrafts(_Shape):
    """What a model gave its teacher as a draft, by measure."""

    prompts: int
    new_tokens: int
    greedy: Drafting
    sampled: Drafting


class Draft(_Shape):
    """A model as its teacher's draft."""

    measured: MeasuredDrafts | None = None


class Fidelity(_Shape):
    """Nearness to the teacher; the classes of each grouping of tokens."""

    by_token: dict[str, Object] | None = None
    by_frequency: dict[str, Object] | None = None
    by_position: dict[str, Object] | None = None
    responses: Object | None = None
    draft: Draft | None = None


class OtherText(_Shape):
    """What was measured on text of another kind, and which that was."""

    source: str
    heldout: Object
    fidelity: Fidelity | None = None


class Rates(_Shape):
    """Speed at one shape."""

    prefill_tokens_per_s_quartiles: Quartiles | None = None
    decode_tokens_per_s_quartiles: Quartiles | None = None


class Speed(Rates):
    """Speed at the first shape, and at all."""

    shapes: list[Rates] | None = None
    teacher: Object | None = None


class Prompting(_Shape):
    """How prompts were written."""

    chat_template_sha256: str | None = None
    system: str | None = None


class Manifest(_Shape):
    """What a step was made from."""

    inputs: Object | None = None


class Evaluation(_Shape):
    """RUN/eval/NAME.json."""

    prompting: Prompting | None = None
    tasks: dict[str, Task]
    identity: list[str] | None = None
    heldout: Object | None = None
    fidelity: Fidelity | None = None
    other_text: OtherText | None = None
    speed: Speed | None = None
    samples: list[Sample] | None = None
    manifest: Manifest | None = None


class CandidateRecord(_Shape):
    """A cut that was compared with others."""

    kept_layers: list[int]
    proposed_by: list[str]
    before: Object
    after: Object


class Criterion(_Shape):
    """A measure that proposed a cut."""

    kept_layers: list[int]
    scores: list[float]


class RankingRecord(_Shape):
    """What layers were chosen on."""

    candidates: list[CandidateRecord] | None = None
    criteria: dict[str, Criterion] | None = None


class Original(_Shape):
    """What stays of the first model of a chain."""

    kept_layers: list[int]
    num_layers: int


class PruneRecord(_Shape):
    """RUN/student-init/prune.json."""

    original: Original | None = None

    kept_layers: list[int] | None = None
    dropped_layers: list[int] | None = None
    ranking: RankingRecord | None = None
    manifest: Object | None = None


class Histogram(_Shape):
    """Counts of bins between edges."""

    edges: Annotated[list[float], Field(min_length=2)]
    counts: Annotated[list[int], Field(min_length=1)]


class SelectionRecord(_Shape):
    """What of the text was learned from, by which scores."""

    by: str
    of: str
    order: str
    taken: int
    count: int
    low: float
    high: float
    mean: float
    quantiles: dict[str, float]
    histogram: Histogram


class CacheRecord(_Shape):
    """What was read in the teacher's place."""

    kind: str
    bytes: float
    bytes_per_token: float
    rounding_kl: float | None = None


class OnPolicyRecord(_Shape):
    """What the student wrote to learn from."""

    steps: float
    rollouts: float
    tokens: float
    mean_tokens: float
    limit: float
    repetition: float
    writing_tokens_per_s: float
    learning_tokens_per_s: float


class TrainingRecord(_Shape):
    """RUN/student/distill.json."""

    memory_plan: dict[str, float] | None = None
    selection: SelectionRecord | None = None
    cache: CacheRecord | None = None
    on_policy: OnPolicyRecord | None = None
    manifest: Object | None = None


class TextSource(_Shape):
    """A source of a blend."""

    name: str


class TextIndex(_Shape):
    """RUN/data/index.json."""

    sources: list[TextSource] | None = None


class ExportRecord(_Shape):
    """RUN/export/FORMAT/export.json."""

    format: str
    file: str | None
    bytes: float
    bits_per_weight: float


class ItemRecord(_Shape):
    """A line of RUN/eval/NAME.items.jsonl."""

    task: str
    metrics: Object
    groups: list[str] = []
    options: list[str] | None = None
    log_likelihoods: list[float] | None = None
    choice: int | None = None
    gold: list[int] | None = None
    question: str | None = None
    answer: str | None = None
    target: str | list[str] | None = None


class AbilityRecord(_Shape):
    """A line of RUN/train/ability.jsonl."""

    of: str
    step: int | None
    tokens: int | None
    task: str
    metric: str
    chance: float | None
    items: Annotated[list[float], Field(min_length=1)]


class LoggedStep(_Shape):
    """A line of RUN/train/metrics.jsonl."""

    step: int


def require_shape(shape: Any, value: T, path: Path) -> T:
    """`value`, read from `path`, after checking it against one of the shapes here, or a list of one by line.

    Raises:
        InputError: it has another shape; the message names the file, the line and the field.
    """
    try:
        TypeAdapter(shape).validate_python(value)
    except ValidationError as error:
        fault = error.errors()[0]
        place = list(fault["loc"])
        line = f", line {int(place.pop(0)) + 1}" if isinstance(value, list) and place else ""
        field = f": {'.'.join(map(str, place))}" if place else ""
        raise InputError(f"{path}{line}{field} is not as a step writes it: {fault['msg']}.") from error
    return value
