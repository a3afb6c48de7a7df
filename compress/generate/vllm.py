"""Answers by vLLM, where it is installed: continuous batching on GPUs.

What it draws comes from its own random numbers, a seed for each answer. Another version, or another batch, may round
otherwise, and so write other tokens; the batches of a run are fixed: one that was killed goes on with the same calls.
"""

import hashlib
import importlib.util
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import torch

from compress.base.errors import UsageError
from compress.base.journal import Batch, Journal
from compress.generate.answers import STAGE
from compress.generate.config import GenerateConfig
from compress.inference.decoding import end_tokens
from compress.inference.readout import Checkpoint
from compress.inference.tree import Ids

_BATCH = 1024
"""Answers that are asked for, and kept, at once."""


def vllm_version(config: GenerateConfig) -> str | None:
    """The version of vLLM that is to write; None where our own decoding is.

    Raises:
        UsageError: it is asked for and not installed.
    """
    there = importlib.util.find_spec("vllm") is not None
    if config.engine == "vllm" and not there:
        raise UsageError("generate.engine: vllm, which is not installed: `pip install vllm`, or leave the option out.")
    wanted = config.engine == "vllm" or (config.engine == "auto" and there and torch.cuda.is_available())
    return metadata.version("vllm") if wanted else None


class VllmWriter:
    """Lets the model of a checkpoint's folder answer in vLLM."""

    def __init__(self, checkpoint: Checkpoint, config: GenerateConfig) -> None:
        self._checkpoint, self._config = checkpoint, config
        self._model: Any = None

    def answers(self, prompts: Sequence[Ids], journal: Journal) -> list[list[list[int]]]:
        """As `Writer.answers`."""
        samples = self._config.samples
        asked = [(number, sample) for number in range(len(prompts)) for sample in range(samples)]
        batches = [asked[start : start + _BATCH] for start in range(0, len(asked), _BATCH)]
        contents = [[[prompts[number].tolist() for number, _ in batch], batch] for batch in batches]
        written = journal.measure(
            STAGE,
            [Batch(content, len(batch)) for content, batch in zip(contents, batches, strict=True)],
            lambda number: self._write(batches[number], prompts),
        )
        flat = [answer for batch in written for answer in batch]
        return [flat[start : start + samples] for start in range(0, len(flat), samples)]

    def _write(self, batch: Sequence[tuple[int, int]], prompts: Sequence[Ids]) -> list[list[int]]:
        from vllm import SamplingParams

        config = self._config
        settings = [
            SamplingParams(
                temperature=config.temperature,
                top_p=config.top_p,
                max_tokens=config.new_tokens,
                seed=_seed(config.seed, number, sample),
                stop_token_ids=sorted(end_tokens(self._checkpoint.model, self._checkpoint.tokenizer)),
                detokenize=False,
            )
            for number, sample in batch
        ]
        texts = [{"prompt_token_ids": prompts[number].tolist()} for number, _ in batch]
        found = self._engine().generate(texts, settings, use_tqdm=False)
        return [list(each.outputs[0].token_ids) for each in found]

    def _engine(self) -> Any:
        if self._model is None:
            from vllm import LLM

            dtype = "auto" if self._config.dtype == "auto" else self._config.dtype
            self._model = LLM(
                model=str(self._checkpoint.folder), dtype=dtype, seed=self._config.seed, enable_prefix_caching=True
            )
        return self._model


def _seed(seed: int, number: int, sample: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {number} {sample}".encode()).digest()[:4])
