"""Trees of tokens and the plan over them: nothing is lost, nothing is seen that should not be, batches fit."""

import random

import numpy as np
import pytest
import torch

from compress.inference import planning
from compress.inference.planning import plan, scoring_cost
from compress.inference.tree import Ids, batch_trees, build_tree, tree_mask


def random_sequences(rng: random.Random) -> list[Ids]:
    """Distinct sequences over three tokens: they share beginnings, and some are the beginning of others."""
    stems = [[rng.randrange(3) for _ in range(rng.randrange(60))] for _ in range(3)]
    found = {tuple(rng.choice(stems) + [rng.randrange(3) for _ in range(rng.randint(1, 12))]) for _ in range(25)}
    return [np.array(ids, np.int64) for ids in rng.sample(sorted(found), len(found))]


@pytest.mark.parametrize("share", [True, False])
def test_every_sequence_is_planned_once_within_the_budget(share: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "_PREFIX_TOKENS", 3)
    monkeypatch.setattr(planning, "_PREFIX_SAVES", 8)
    depths = set()
    for seed in range(200):
        rng = random.Random(seed)
        sequences, budget = random_sequences(rng), rng.choice([16, 100, 1000])
        first = [rng.randrange(len(ids)) for ids in sequences]
        jobs = plan(sequences, first, budget, share=share)
        assert sorted(number for job in jobs for number in job.members) == list(range(len(sequences)))
        for job in jobs:
            trees = [build_tree([sequences[number] for number in row], job.base) for row in job.rows]
            longest = max(map(len, trees))
            assert len(trees) == 1 or scoring_cost(len(trees), longest, len(job.members), job.base) <= budget
            assert all(first[number] >= job.base for number in job.members)
            assert all(np.array_equal(sequences[number][: job.base], job.prefix) for number in job.members)
            depths.add(len(job.cuts))
            assert share or (longest, job.cuts) == (max(len(sequences[number]) for number in job.members), ())
    assert depths >= {0, 1, 2, 3} if share else depths == {0}


def test_a_node_sees_its_own_sequence_and_nothing_else() -> None:
    for seed in range(100):
        rng = random.Random(seed)
        sequences = sorted(random_sequences(rng), key=lambda ids: ids.tolist())
        base, longest = rng.choice([0, 1, 2]), max(sequences, key=len)
        group = [ids for ids in sequences if len(ids) > base and np.array_equal(ids[:base], longest[:base])]
        tree = build_tree(group, base)
        tokens, depths, ends = batch_trees([tree, build_tree(group[:1], base)], base)
        mask = tree_mask(ends, base)
        for path, ids in zip(tree.paths, group, strict=True):
            assert tokens[0, path].tolist() == ids[base:].tolist()
            assert depths[0, path].tolist() == list(range(base, len(ids)))
            for at, node in enumerate(path):
                seen = torch.nonzero(mask[0, 0, node]).flatten().tolist()
                assert seen == [*range(base), *(base + path[: at + 1]).tolist()]
        assert len(tree) == len({tuple(ids[: n + 1]) for ids in group for n in range(base, len(ids))})
        assert bool(mask.any(dim=-1).all())


def test_options_of_a_question_are_one_row_and_few_shot_examples_one_prefix() -> None:
    rng = np.random.default_rng(0)
    examples = rng.integers(0, 1000, 600)
    questions = [np.concatenate([examples, rng.integers(0, 1000, 100)]) for _ in range(40)]
    options = [np.concatenate([question, rng.integers(0, 1000, 20)]) for question in questions for _ in range(4)]
    jobs = plan(options, [700] * 160, 8192)
    assert {job.base for job in jobs} == {600}
    assert {len(row) for job in jobs for row in job.rows} == {4}
    computed = 600 + sum(len(build_tree([options[n] for n in row], 600)) for job in jobs for row in job.rows)
    assert computed == 600 + 40 * (100 + 4 * 20)


def test_long_documents_take_no_mask() -> None:
    """Alone in their rows, without a prefix and away from trees, they run as any forward pass does."""
    rng = np.random.default_rng(0)
    start = rng.integers(0, 1000, 600)
    documents = [np.concatenate([start, rng.integers(0, 1000, 9000)]) for _ in range(8)]
    questions = [np.concatenate([rng.integers(0, 1000, 100), [option]]) for option in range(2) for _ in range(8)]
    questions += [np.concatenate([ids[:100], ids[100:] + 2]) for ids in questions]
    jobs = plan([*documents, *questions], [9500] * 8 + [100] * 32, 200_000)
    for job in jobs:
        long = [number for number in job.members if number < 8]
        assert not long or (job.base == 0 and all(len(row) == 1 for row in job.rows))
    assert any(len(row) == 2 for job in jobs for row in job.rows)
