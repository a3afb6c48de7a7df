"""What a step does besides arithmetic: read ahead, stop together, run compiled."""

import copy
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
import torch
from distill_world import SEQ_LEN, World
from helpers import save_tiny_model, tiny_config
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from compress.base.signals import StopRequest
from compress.distill import DistillConfig
from compress.distill.loop.stop_vote import StopVote
from compress.distill.resources.loading import compile_backbone
from compress.distill.rows.read_ahead import read_ahead
from compress.model.parts import hidden_states


def readers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("read-ahead")]


def test_reads_come_in_order_one_ahead_and_the_thread_ends() -> None:
    started: list[int] = []

    def read(number: int) -> int:
        started.append(number)
        return number * 10

    with closing(read_ahead(lambda n=n: read(n) for n in range(5))) as found:
        assert next(found) == 0
        while len(started) < 2:
            time.sleep(0.001)
        time.sleep(0.02)
        assert started == [0, 1]
        assert list(found) == [10, 20, 30, 40]
    assert not readers()


def test_errors_come_where_the_result_would_and_leaving_early_ends_the_thread() -> None:
    def fail() -> int:
        raise OSError("damaged")

    reads: list[Callable[[], int]] = [lambda: 1, fail, lambda: 3]
    with closing(read_ahead(reads)) as found:
        assert next(found) == 1
        with pytest.raises(OSError, match="damaged"):
            next(found)
    assert not readers()
    with closing(read_ahead(reads)) as found:
        assert next(found) == 1
        assert readers()
    assert not readers()
    assert list(read_ahead([])) == []


class Group:
    """Two processes in turn: `reduce` adds the vote the other cast for the same step."""

    num_processes, device = 2, torch.device("cpu")

    def __init__(self, others: Iterator[float]) -> None:
        self._others = others

    def reduce(self, vote: torch.Tensor, reduction: str) -> torch.Tensor:
        assert reduction == "sum"
        return vote + next(self._others)


def test_processes_stop_at_the_same_step() -> None:
    asked, votes = [False, False, True, True, True], [False, False, False, True, True]
    mine, theirs = StopVote(Group(map(float, votes))), StopVote(Group(map(float, asked)))
    answers = []
    for here, there in zip(asked, votes, strict=True):
        requests = [StopRequest(), StopRequest()]
        for request, wanted in zip(requests, (here, there), strict=True):
            request.signal_name = "SIGTERM" if wanted else None
        answers.append((mine.agreed(requests[0]), theirs.agreed(requests[1])))
    assert answers == [(False, False), (False, False), (False, False), (True, True), (True, True)]


def both(backend: str) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Hidden states and gradients of a compiled and of a plain model."""
    torch.manual_seed(0)
    plain = AutoModelForCausalLM.from_config(tiny_config("llama", num_hidden_layers=1), attn_implementation="sdpa")
    compiled = copy.deepcopy(plain)
    compile_backbone(compiled, asked=True, backend=backend)
    ids = torch.arange(24).view(2, 12)
    results: list[list[torch.Tensor]] = []
    for model in (compiled, plain):
        hidden = hidden_states(model, ids)
        hidden.square().sum().backward()
        results.append([hidden.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    return results[0], results[1]


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_backbone_is_one_graph_and_equal() -> None:
    """`fullgraph=True` fails at the first break of the graph."""
    compiled, plain = both("aot_eager")
    torch.testing.assert_close(compiled, plain, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compiled_training_equals_plain(world: World, options: Callable[..., DistillConfig]) -> None:
    student = save_tiny_model(world.root / "llama", seed=3, scale=0.1, num_hidden_layers=1)  # it has no dropout
    for name, on in (("plain", False), ("compiled", True)):
        config = options(compile=on, micro_batch_rows=3, document_mask=True, tokens=12 * SEQ_LEN)
        world.run(name, config, student=student)
    plain, compiled = (load_file(world.root / n / "student/model.safetensors") for n in ("plain", "compiled"))
    torch.testing.assert_close(compiled, plain, rtol=1e-3, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_compilation_is_asked_of_both_models(
    world: World, options: Callable[..., DistillConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[Any] = []
    for owner in ("students.student", "teachers.source"):
        monkeypatch.setattr(f"compress.distill.{owner}.compile_backbone", lambda model, asked: compiled.append(model))
    world.run("run", options(compile=True, tokens=4 * SEQ_LEN))
    assert len(compiled) == 2
