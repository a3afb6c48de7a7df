"""Which text or instructions to prepare, and how much of them."""

import dataclasses
import math
from fractions import Fraction
from pathlib import PurePath
from typing import Annotated, Literal

from pydantic import Field

from compress.base.config import config
from compress.base.currency import FREE, PLACE, Before
from compress.base.units import Count

AtLeastOne = Annotated[Count, Field(ge=1)]


Form = Literal["auto", "text", "alpaca", "chat", "completion", "images"]


@config
class SourceConfig:
    """One source of a blend, and its share of the training tokens."""

    dataset: Annotated[str, PLACE]
    """SOURCE, as `data.dataset`."""
    name: str | None = None
    """What reports call it; by default the last part of SOURCE, `b` of `a/b.jsonl`."""
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Its part of `data.tokens`, or of what the `tokens` of other sources leave of them, beside the other weights; 1 by
    default."""
    tokens: AtLeastOne | None = None
    """Its training tokens, in place of a weight."""
    config: Annotated[str | None, FREE] = None
    """As `data.config`."""
    split: Annotated[str, FREE] = "train"
    """As `data.split`."""
    text_column: str = "text"
    """As `data.text_column`."""
    form: Form = "auto"
    """As `data.form`."""

    def __post_init__(self) -> None:
        if self.weight is not None and self.tokens is not None:
            raise ValueError("write `weight` or `tokens`: either says how much of it there is")


_OF_ONE_SOURCE = ("config", "split", "text_column", "form")


@config
class DataConfig:
    """The text of a run and the shape of its token store."""

    dataset: Annotated[str | None, PLACE] = None
    """SOURCE: `hub:ORG/NAME[:CONFIG]`, `ORG/NAME`, or a local file, folder or glob of parquet, arrow, jsonl, json
    (lines, or an array of objects) or txt, the last three also as .gz and .zst. A line of txt is a document. A folder
    is read as a whole, in the order of its file names; a .json whose first object has no text is metadata there.
    Instructions are read too, see `form`."""
    sources: Annotated[tuple[SourceConfig, ...] | None, Before(None)] = None
    """In place of `dataset`, a blend: [{dataset, weight or tokens, name, config, split, text_column, form}]. Rows of
    all are mixed by the order of the training; what is held out is measured for each as well."""
    config: Annotated[str | None, FREE] = None
    """Configuration of a hub dataset, `sample-10BT` for one. With `split` it is part of the source's identity."""
    split: Annotated[str, FREE] = "train"
    """Split of a hub dataset; local files are all read."""
    text_column: str = "text"
    """Column (or JSON key) that holds the text."""
    form: Annotated[Form, Before("auto")] = "auto"
    """What rows hold: text, or instructions: alpaca {instruction, input, output}, chat {messages}, completion {prompt,
    completion}, or images {images, and messages or prompt and completion}. auto: text where there is that column, else
    the form that the columns are of, which is said; never images."""
    train_on_prompt: Annotated[bool, Before(False)] = False
    """Learn from all of a conversation; by default from its answers alone. Held-out loss is of the same tokens."""
    too_long: Annotated[Literal["cut", "leave_out"], Before("cut")] = "cut"
    """Conversations longer than a row: cut at its end, or left out; either is counted. With images always left out."""
    apart: Annotated[bool, Before(True)] = True
    """Keep the conversations of a row apart in training, as `distill.document_mask` does with texts; not every model
    can."""
    tokens: AtLeastOne | None = None
    """Training tokens to prepare, rounded up to whole rows; None is all there is, for local files only."""
    seq_len: Annotated[Count, Field(ge=2)] = 2048
    """Tokens a row, at most the models' context: the default is cut to a shorter one."""
    heldout_sequences: Count = 100
    """Rows of `seq_len` tokens from documents that training never sees, one a document while there are enough. Of a
    blend each source gives as many, and one more where they do not divide."""
    bos: Annotated[Literal["auto", "always", "never"], Before("auto")] = "auto"
    """BOS before documents and rows: `auto` puts it before documents where the tokenizer's own encoding does, and
    before rows where the teacher reads text better with it, which is measured."""
    seed: Count = 0
    """Seed of the choice of held-out documents."""
    num_proc: Annotated[AtLeastOne | None, FREE] = None
    """Accepted and without effect: the tokenizer has a thread on each core (RAYON_NUM_THREADS bounds them)."""
    on_bad_row: Literal["skip", "error"] = "skip"
    """Rows without readable text, and files damaged midway: skip and count them, or stop."""

    def __post_init__(self) -> None:
        if (self.dataset is None) == (self.sources is None):
            raise ValueError("write exactly one of `dataset` (--data) and `sources`")
        if self.sources is None:
            return
        if any(source.form == "images" for source in self.sources):
            raise ValueError("rows with images cannot be part of a blend: write that source alone, as `dataset`")
        if len(self.sources) < 2:
            raise ValueError("a blend has two `sources` or more: write one as `dataset`")
        for name in _OF_ONE_SOURCE:
            if getattr(self, name) != type(self).__dataclass_fields__[name].default:
                raise ValueError(f"of a blend, `{name}` is written in each of the `sources`")
        if len(set(self.names)) < len(self.sources):
            raise ValueError(f"two sources have one name ({', '.join(self.names)}): write a `name` in each")
        if len({dataclasses.replace(source, name="", weight=None, tokens=None) for source in self.sources}) < len(
            self.names
        ):
            raise ValueError(
                "two sources are the same text: write it once, or what is held out of one is learned from the other"
            )
        self._check_amounts(self.sources)

    def _check_amounts(self, sources: tuple[SourceConfig, ...]) -> None:
        shared = [source for source in sources if source.tokens is None]
        if self.tokens is None:
            if any(source.weight is not None for source in shared):
                raise ValueError("weights are parts of `data.tokens`: write that, or the `tokens` of each source")
            return
        left = self.tokens - sum(source.tokens or 0 for source in sources)
        if shared and left < 1:
            raise ValueError(f"the `tokens` of sources leave nothing of {self.tokens:,} to the others")
        if not shared and left:
            raise ValueError("each source has its own `tokens`, which are not `data.tokens` together: leave that out")

    @property
    def datasets(self) -> tuple[str, ...]:
        """Each SOURCE that is read."""
        return (self.dataset,) if self.dataset else tuple(source.dataset for source in self.sources or ())

    @property
    def names(self) -> tuple[str, ...]:
        """What the sources of a blend are called; empty for text of one source."""
        return tuple(source.name or _name_of(source.dataset) for source in self.sources or ())

    def parts(self) -> "tuple[DataConfig, ...]":
        """What each source of a blend is to give, as the text of one source; the config itself where it is that."""
        if self.sources is None:
            return (self,)
        weights = sum(map(_weight, self.sources))
        left = (self.tokens or 0) - sum(source.tokens or 0 for source in self.sources)
        return tuple(
            dataclasses.replace(
                self,
                sources=None,
                dataset=source.dataset,
                tokens=source.tokens or (None if self.tokens is None else math.ceil(left * _weight(source) / weights)),
                heldout_sequences=math.ceil(self.heldout_sequences / len(self.sources)),
                **{name: getattr(source, name) for name in _OF_ONE_SOURCE},
            )
            for source in self.sources
        )


def _weight(source: SourceConfig) -> Fraction:
    """The weight as it is written, so that shares which are whole numbers are exact."""
    return Fraction(0 if source.tokens is not None else str(source.weight or 1))


def _name_of(dataset: str) -> str:
    """The last part of a SOURCE without its endings: `b` of `a/b.jsonl.gz`, of `hub:a/b:config`, and of `a/b/*.txt`."""
    plain = [part for part in PurePath(dataset.removeprefix("hub:")).parts if not set("*?[") & set(part)]
    last = plain[-1] if plain else dataset
    return last.split(":")[0].split(".")[0] or last
