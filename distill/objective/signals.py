"""What an objective may look at in a model: last hidden states with the head, and outputs of named blocks."""

from typing import Any, NamedTuple

from torch import Tensor

from compress.distill.objective.mixture import Mixture
from compress.distill.objective.sparse import Sparse
from compress.distill.rows.batch import MicroBatch
from compress.distill.rows.documents import packed_hidden_states
from compress.model.blocks import block_outputs
from compress.model.parts import OutputHead, hidden_states, output_head


class Needs(NamedTuple):
    """The signals that are asked for beside last hidden states and head, which there always are."""

    student_blocks: tuple[int, ...] = ()
    """0-based blocks whose outputs are wanted."""
    teacher_blocks: tuple[int, ...] = ()
    autograd: bool = False
    """Whether a part leaves its gradient to torch's autograd, which keeps the teacher's signals then: they may not be
    made in inference mode, whose forward pass of a small model takes a fifth less of the host's time."""

    def __or__(self, other: "Needs") -> "Needs":
        return Needs(
            student_blocks=tuple(sorted({*self.student_blocks, *other.student_blocks})),
            teacher_blocks=tuple(sorted({*self.teacher_blocks, *other.teacher_blocks})),
            autograd=self.autograd or other.autograd,
        )


class Signals(NamedTuple):
    """What a model made of the M places of a micro-batch that have a label."""

    hidden: Tensor
    """[M, D] after the final norm; [M, 0] of a teacher that is `sparse`."""
    head: OutputHead
    """What makes logits of them, for the token ids that both models have."""
    blocks: dict[int, Tensor]
    """[M, D] outputs of the blocks that were asked for; the last block's is before the final norm."""
    sparse: Sparse | None = None
    """What is known of a teacher's distribution in place of its hidden states."""
    mixture: Mixture | None = None
    """What several teachers say, of which `hidden` and `head` are the first one's."""


def read_signals(model: Any, batch: MicroBatch, blocks: tuple[int, ...], vocabulary: int) -> Signals:
    """One forward pass of a causal LM; its head is cut to the first `vocabulary` token ids."""
    with block_outputs(model, blocks) as outputs:
        if batch.inputs:
            hidden = hidden_states(model, batch.ids, **batch.inputs)
        else:
            hidden = packed_hidden_states(model, batch.ids, batch.positions, batch.boundaries)
    return Signals(
        hidden=batch.with_label(hidden),
        head=first_ids(output_head(model), vocabulary),
        blocks={block: batch.with_label(outputs[block]) for block in blocks},
    )


def first_ids(head: OutputHead, count: int) -> OutputHead:
    """The head of the first `count` token ids."""
    if len(head.weight) == count:
        return head
    bias = None if head.bias is None else head.bias[:count]
    return OutputHead(head.weight[:count], bias, head.scale, head.softcap)
