"""Which text or instructions to prepare, and how much of them."""

from typing import Annotated, Literal

from pydantic import Field

from compress.base.config import config
from compress.base.currency import FREE, PLACE, Before
from compress.base.units import Count

AtLeastOne = Annotated[Count, Field(ge=1)]


@config
class DataConfig:
    """The text of a run and the shape of its token store."""

    dataset: Annotated[str, PLACE]
    """SOURCE: `hub:ORG/NAME[:CONFIG]`, `ORG/NAME`, or a local file, folder or glob of parquet, arrow, jsonl, json
    (lines, or an array of objects) or txt, the last three also as .gz and .zst. A line of txt is a document. A folder
    is read as a whole, in the order of its file names; a .json whose first object has no text is metadata there.
    Instructions are read too, see `form`."""
    config: Annotated[str | None, FREE] = None
    """Configuration of a hub dataset, `sample-10BT` for one. With `split` it is part of the source's identity."""
    split: Annotated[str, FREE] = "train"
    """Split of a hub dataset; local files are all read."""
    text_column: str = "text"
    """Column (or JSON key) that holds the text."""
    form: Annotated[Literal["auto", "text", "alpaca", "chat", "completion"], Before("auto")] = "auto"
    """What rows hold: text, or instructions: alpaca {instruction, input, output}, chat {messages}, completion {prompt,
    completion}. auto: text where there is that column, else the form that the columns are of, which is said."""
    train_on_prompt: Annotated[bool, Before(False)] = False
    """Learn from all of a conversation; by default from its answers alone. Held-out loss is of the same tokens."""
    too_long: Annotated[Literal["cut", "leave_out"], Before("cut")] = "cut"
    """Conversations longer than a row: cut at its end, or left out; either is counted."""
    apart: Annotated[bool, Before(True)] = True
    """Keep the conversations of a row apart in training, as `distill.document_mask` does with texts; not every model
    can."""
    tokens: AtLeastOne | None = None
    """Training tokens to prepare, rounded up to whole rows; None is all there is, for local files only."""
    seq_len: Annotated[Count, Field(ge=2)] = 2048
    """Tokens a row, at most the models' context: the default is cut to a shorter one."""
    heldout_sequences: Count = 100
    """Rows of `seq_len` tokens from documents that training never sees, one a document while there are enough."""
    bos: Annotated[Literal["auto", "always", "never"], Before("auto")] = "auto"
    """BOS before documents and rows: `auto` puts it before documents where the tokenizer's own encoding does, and
    before rows where the teacher reads text better with it, which is measured."""
    seed: Count = 0
    """Seed of the choice of held-out documents."""
    num_proc: Annotated[AtLeastOne | None, FREE] = None
    """Accepted and without effect: the tokenizer has a thread on each core (RAYON_NUM_THREADS bounds them)."""
    on_bad_row: Literal["skip", "error"] = "skip"
    """Rows without readable text, and files damaged midway: skip and count them, or stop."""
