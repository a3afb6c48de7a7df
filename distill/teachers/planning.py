"""What a cache of a teacher will take and save, from config.json alone."""

import copy
import dataclasses
from typing import Any

from compress.base.units import format_bytes
from compress.distill.teachers.config import CacheConfig
from compress.distill.teachers.kinds import BLOCK
from compress.distill.teachers.row_files import ENTRY
from compress.model.costs import model_costs
from compress.model.parts import count_parameters, empty_model

_DIFFERENT = 18
"""Tokens that differ among the draws at one place, with which sizes are planned, about 2 bytes each: as many as of 50
from SmolLM2 135M on web text."""


@dataclasses.dataclass(frozen=True)
class CachePlan:
    """Extent and cost of a cache."""

    kind: str
    bytes: int
    """Of all its files but the index."""
    bytes_per_token: float
    """Of the text that is trained on."""
    tokens: int
    """Of the store, that the teacher is run on."""
    flops_per_token: float
    """Of the teacher's forward pass."""

    def hours(self, flops_per_s: float) -> float:
        """Hours that it takes to make, at a rate of `flops_per_s`."""
        return self._hours(self.tokens, flops_per_s)

    def describe(self, trained_tokens: int, flops_per_s: float) -> str:
        """The plan for people, beside a training on so many tokens: what it takes, what it saves, when it pays."""
        made, saved = self.hours(flops_per_s), self._hours(trained_tokens, flops_per_s)
        passes = trained_tokens / self.tokens
        pays = f"it pays in this run, which reads the text {passes:.2g} times"
        if passes <= 1:
            runs = int(1 / passes) + 1
            pays = f"it pays from {runs} such runs or {runs}-fold epochs on that read it, and not in this one alone"
        return (
            f"{self.kind}, {format_bytes(self.bytes)} on disk, {self.bytes_per_token:,.0f} bytes a token; made in "
            f"{made:.2g} h, saves {saved:.2g} h of a run: {pays}"
        )

    def _hours(self, tokens: int, flops_per_s: float) -> float:
        return tokens * self.flops_per_token / flops_per_s / 3600


def plan_cache(
    config: CacheConfig, teacher: Any, *, num_rows: int, num_heldout: int, seq_len: int, bf16: bool
) -> CachePlan:
    """The plan of a cache of a teacher, by its config, on rows to train on and held-out ones. The bytes of `samples`
    depend on how sure the teacher is, and are about right."""
    value = 2 if bf16 else 4
    width: int = teacher.get_text_config().hidden_size
    exact = width * value
    of_token = {
        "hidden": exact if config.rows == "exact" else width + 2 * -(-width // BLOCK),
        "samples": 2 + 2 * min(config.draws, _DIFFERENT),
        "topk": 6 * config.k,
    }[config.kind]
    table = (num_rows + num_heldout) * ENTRY.itemsize
    rows = seq_len * (num_rows * of_token + num_heldout * exact)
    head = value * count_parameters(empty_model(copy.deepcopy(teacher)).get_output_embeddings())
    return CachePlan(
        kind=config.kind,
        bytes=rows + table + head,
        bytes_per_token=of_token,
        tokens=(num_rows + num_heldout) * seq_len,
        flops_per_token=model_costs(teacher).prefill_flops(seq_len),
    )
