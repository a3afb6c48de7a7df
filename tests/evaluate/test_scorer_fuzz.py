"""Random request sets against a dense float64 reference: every log-likelihood and every greedy flag."""

import random
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import save_tiny_model

from compress.evaluate.harness.scorer import Scorer
from compress.inference import planning
from compress.inference.readout import Checkpoint, load_checkpoint

VOCABULARY, LONGEST = 257, 256
TYPES: dict[str, dict[str, Any]] = {"llama": {}, "gpt2": {}, "qwen3": {"head_dim": 8}, "gpt_neox": {}}
ids = tuple[int, ...]


class Reference:
    """log p(continuation | context) of a float64 copy of the model, each request alone in a dense forward pass."""

    def __init__(self, checkpoint: Checkpoint, folder: Path) -> None:
        self._model = type(checkpoint.model).from_pretrained(folder, dtype=torch.float64, attn_implementation="eager")

    @torch.inference_mode()
    def __call__(self, context: ids, continuation: ids) -> tuple[float, bool, float]:
        """Nats, whether each token is the argmax, and the smallest lead of an argmax over the runner-up."""
        whole = (context + continuation)[-(LONGEST + 1) :]
        logits = self._model(torch.tensor([whole[:-1]])).logits[0, -len(continuation) :]
        wanted = torch.tensor(continuation)
        best = logits.topk(2).values
        log_p = logits.log_softmax(-1)[torch.arange(len(wanted)), wanted].sum()
        return float(log_p), bool((logits.argmax(-1) == wanted).all()), float((best[:, 0] - best[:, 1]).min())


def random_requests(rng: random.Random) -> list[tuple[ids, ids]]:
    """Questions on shared and nested prefixes, options that share their beginnings, duplicates, splits, long rows."""
    few = rng.random() < 0.3
    token = partial(rng.randrange, 3 if few else VOCABULARY)

    def some(low: int, high: int) -> ids:
        return tuple(token() for _ in range(rng.randint(low, high)))

    requests: list[tuple[ids, ids]] = []
    stems = [some(0, rng.choice([3, 60, 120])) for _ in range(rng.randint(1, 3))]
    for _ in range(rng.randint(1, 8)):
        context = rng.choice(stems) + some(1, rng.choice([4, 40]))
        if rng.random() < 0.1:
            context = some(LONGEST - 5, LONGEST + 30)
        start = some(0, 6)
        for _ in range(rng.choice([1, 2, 4])):
            option = start * (rng.random() < 0.7) + some(1, rng.choice([1, 12]))
            requests.append((context, option))
        if rng.random() < 0.3:
            stems.append(context)
        if rng.random() < 0.2:
            requests.append(rng.choice(requests))
        if rng.random() < 0.3:
            whole = context + option
            cut = rng.randint(1, len(whole) - 1)
            if len(whole) - cut <= LONGEST:
                requests.append((whole[:cut], whole[cut:]))
    rng.shuffle(requests)
    return requests


def check(checkpoint: Checkpoint, reference: Reference, rng: random.Random, budget: int) -> None:
    requests = random_requests(rng)
    found = Scorer(checkpoint, budget)._loglikelihood_tokens([(None, c, t) for c, t in requests], disable_tqdm=True)
    for (context, continuation), (log_p, greedy) in zip(requests, found, strict=True):
        expected, is_greedy, lead = reference(context, continuation)
        assert abs(log_p - expected) < 1e-4, (context, continuation)
        assert greedy == is_greedy or lead < 1e-4, (context, continuation)


@pytest.fixture(scope="module", params=TYPES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, Reference]:
    folder = save_tiny_model(tmp_path_factory.mktemp("fuzz") / "m", request.param, scale=0.1, **TYPES[request.param])
    checkpoint = load_checkpoint(folder, device="cpu")
    return checkpoint, Reference(checkpoint, folder)


@pytest.mark.parametrize("count", [25, pytest.param(250, marks=pytest.mark.slow)])
def test_random_request_sets_have_the_float64_scores(
    pair: tuple[Checkpoint, Reference], count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """100 sets by default and 1,000 in the slow run, over four architectures; half of them share eagerly."""
    for seed in range(count):
        rng = random.Random(seed)
        for name, values in {"_ROW_TOKENS": (64, 1024), "_PREFIX_TOKENS": (3, 32), "_PREFIX_SAVES": (8, 512)}.items():
            monkeypatch.setattr(planning, name, values[seed % 2])
        check(*pair, rng, rng.choice([64, 300, 1024, 8192]))
