"""Which block of the student is compared with which block of the teacher."""

from compress.base.errors import UsageError
from compress.distill.config import HiddenConfig, SimilarityConfig
from compress.distill.objective.part import Pair

BlockPairs = tuple[tuple[int, int], ...]


def block_pairs(term: str, config: HiddenConfig | SimilarityConfig, pair: Pair) -> BlockPairs:
    """(student's, teacher's) blocks, 0-based, in the student's order.

    Raises:
        UsageError: a pair is outside the models, one of the student's blocks has two, no pair is left, or the pairs
            are named by a cut that is not known.
    """
    assert pair.teacher is not None
    own, theirs = (model.get_text_config().num_hidden_layers for model in (pair.student, pair.teacher))
    if isinstance(config.pairs, str):
        found = _named(term, config.pairs, own, theirs, pair.kept)
    else:
        found = _listed(term, config.pairs, own, theirs)
    found = tuple(blocks for blocks in found if blocks[0] < own - config.leave_out_last)
    if not found:
        raise UsageError(
            f"{term}.leave_out_last = {config.leave_out_last} leaves no pair of blocks: the student has {own}."
        )
    return found


def uniform_pairs(own: int, theirs: int) -> BlockPairs:
    """Each of the student's `own` blocks with that of the teacher's `theirs` at the same share of the depth."""
    return tuple((i, max(0, round((i + 1) * theirs / own) - 1)) for i in range(own))


def _listed(term: str, asked: BlockPairs, own: int, theirs: int) -> BlockPairs:
    for student, teacher in asked:
        if student >= own or teacher >= theirs:
            raise UsageError(
                f"{term}.pairs has [{student}, {teacher}]: the student's blocks are 0 to {own - 1}, the teacher's 0 to "
                f"{theirs - 1}."
            )
    if len({student for student, _ in asked}) < len(asked):
        raise UsageError(f"{term}.pairs names one of the student's blocks twice; give each one of the teacher's.")
    return tuple(sorted(asked))


def _named(term: str, rule: str, own: int, theirs: int, kept: tuple[int, ...] | None) -> BlockPairs:
    if rule == "last":
        return ((own - 1, theirs - 1),)
    if rule == "uniform":
        return uniform_pairs(own, theirs)
    if kept is None or len(kept) != own:
        raise UsageError(
            f"{term}.pairs: {rule} goes by the layers that were kept, and the student's folder has no prune.json that "
            "names them: write uniform, last, or a list of pairs [[student's block, teacher's block], ...]."
        )
    ends = kept if rule == "kept" else [*(layer - 1 for layer in kept[1:]), theirs - 1]
    return tuple(enumerate(ends))
