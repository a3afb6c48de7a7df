"""Many token sequences in one row: a tree of tokens, written depth first, in which each token sees its ancestors.

The four options of a question become one row that holds their common context once. With position ids that say a
token's depth, and an attention mask that shows it its ancestors alone, every node's hidden state is what it would be
at the end of its own sequence.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Ids = NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Tree:
    """A tree of S tokens that stands on a prefix of `base` tokens.

    Node i has the token `tokens[i]` at `depths[i]` (its position in its sequences), and is an ancestor of exactly the
    nodes i..`ends[i]`-1. `paths[k]` lists the nodes of sequence k from the base to its end.
    """

    tokens: Ids
    depths: Ids
    ends: Ids
    paths: tuple[Ids, ...]

    def __len__(self) -> int:
        return len(self.tokens)


def common_prefix(a: Ids, b: Ids) -> int:
    """Number of tokens that two sequences begin with alike."""
    size = min(len(a), len(b))
    different = np.flatnonzero(a[:size] != b[:size])
    return int(different[0]) if len(different) else size


def build_tree(sequences: Sequence[Ids], base: int) -> Tree:
    """The tree of `sequences`, in lexicographic order, all alike in their first `base` tokens and longer than that."""
    tokens, depths, paths = [], [], []
    size, path = 0, np.empty(0, np.int64)
    ends: list[tuple[Ids, int]] = []
    for number, sequence in enumerate(sequences):
        kept = common_prefix(sequences[number - 1], sequence) - base if number else 0
        ends.append((path[kept:], size))
        new = len(sequence) - base - kept
        tokens.append(sequence[base + kept :])
        depths.append(np.arange(base + kept, len(sequence)))
        path = np.concatenate([path[:kept], np.arange(size, size + new)])
        size += new
        paths.append(path)
    closed = np.full(size, size)
    for nodes, end in ends:
        closed[nodes] = end
    return Tree(np.concatenate(tokens), np.concatenate(depths), closed, tuple(paths))


def batch_trees(rows: Sequence[Tree], base: int) -> tuple[Tensor, Tensor, Tensor]:
    """(token ids, position ids, ends) [B, S] of rows padded on the right; a padding node sees itself alone."""
    size = max(map(len, rows))
    tokens = torch.zeros(len(rows), size, dtype=torch.long)
    depths = torch.full((len(rows), size), base)
    ends = torch.arange(1, size + 1).repeat(len(rows), 1)
    for number, row in enumerate(rows):
        for table, values in ((tokens, row.tokens), (depths, row.depths), (ends, row.ends)):
            table[number, : len(row)] = torch.from_numpy(values)
    return tokens, depths, ends


def tree_mask(ends: Tensor, base: int) -> Tensor:
    """Boolean mask [B, 1, S, base + S], True where node i (third axis) sees: the prefix, its ancestors and itself."""
    size = ends.shape[1]
    node = torch.arange(size, device=ends.device)
    ancestor = (node[None, :] <= node[:, None]) & (node[:, None] < ends[:, None, :])
    prefix = ancestor.new_ones(len(ends), size, base)
    return torch.cat([prefix, ancestor], dim=2)[:, None]
