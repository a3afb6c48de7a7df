"""Which rows of the text, or which of their tokens, a training learns from: options, and how many rows they leave."""

from typing import Annotated, Literal

from pydantic import Field

from compress.base.config import config

Quantile = Annotated[float, Field(ge=0, le=1)]


@config
class SelectConfig:
    """A share of the text by how hard it is: {by: teacher_loss, of: rows, from: 0.1, to: 0.9}."""

    by: Literal["teacher_loss", "teacher_wrong", "disagreement", "student_disagreement"] = "teacher_loss"
    """How hard a token is. teacher_loss: -log p(token), p the teacher's; teacher_wrong: 1 where another is its first
    choice, else 0; disagreement: 1 - p(token), how far p is from the text; student_disagreement: KL(p || q), q the
    student's as it starts. A row has the mean of its tokens that are learned: of a conversation, its answers'."""
    of: Literal["rows", "tokens"] = "rows"
    """Whether rows are left out, or tokens of all rows that would be learned: those are read all the same."""
    from_: Quantile = 0.0
    """Where in the order of all from easy to hard the share begins; `from` in a recipe."""
    to: Quantile = 1.0
    """Where it ends. Tokens as hard as the one there are all taken: by teacher_wrong, {to: 0} takes those that the
    teacher gets right, and {from: 1} those it does not."""

    def __post_init__(self) -> None:
        if self.from_ > self.to or (self.of == "rows" and self.from_ == self.to):
            raise ValueError("`from` is to be less than `to`: with nothing between them nothing is left")


def rows_left(select: SelectConfig | None, num_rows: int) -> range:
    """Which places of `num_rows` rows in their order from easy to hard are read."""
    if select is None or select.of == "tokens":
        return range(num_rows)
    return range(round(select.from_ * num_rows), round(select.to * num_rows))
