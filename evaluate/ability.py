"""A few items of a few tasks, on which a student is scored while it is trained: the same every time."""

import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.base.config import build_from, to_dict
from compress.base.currency import decisive
from compress.base.disk import sha256_json
from compress.base.journal import Journal
from compress.evaluate.config import EvalConfig
from compress.inference.readout import Checkpoint, load_checkpoint, read_out
from compress.model.framing import Framing
from compress.model.load import load_tokenizer

if TYPE_CHECKING:
    from compress.evaluate.harness.benchmarks import BuiltBenchmarks

Row = dict[str, Any]


class AbilityTest:
    """Scores models in memory and in folders on the first `config.limit` items of each of `config.tasks`.

    Args:
        config: the tasks, and how they are asked.
        every: steps from one time to the next, or a share of all steps.
        kept: the share of the teacher's score above chance at which training may end; None ends it never.
    """

    def __init__(self, config: EvalConfig, every: float, kept: float | None = None) -> None:
        self.every, self.kept = every, kept
        self._config = config

    @property
    def key(self) -> str:
        """What is asked, as a hash: scores of another test are not comparable."""
        return sha256_json(decisive(EvalConfig, to_dict(self._config)))

    def of_folder(self, folder: Path, prefix: tuple[int, ...]) -> list[Row]:
        """The scores of a model in a folder, as `of_model`."""
        asked = self._config
        return self._rows(load_checkpoint(folder, dtype=asked.dtype, device=asked.device, framing=Framing(rows=prefix)))

    def of_model(self, model: Any, folder: Path, prefix: tuple[int, ...]) -> list[Row]:
        """The scores of a model in memory, whose tokenizer is that of `folder`, and whose prompts begin with the tokens
        `prefix`, as its rows of text do; all processes of a launch share the work. Of its training nothing changes but
        the global generators of random numbers.

        Returns:
            For each task its name, primary `metric`, `chance` (or None), and `items`, that metric of each item.
        """
        read = read_out(model, str(folder))
        words = load_tokenizer(folder)
        return self._rows(Checkpoint(read.name, model, read.head, read.vocab_size, folder, words, prefix))

    def _rows(self, checkpoint: Checkpoint) -> list[Row]:
        found = _built(json.dumps(to_dict(self._config))).score(checkpoint, Journal(), tell=False)
        rows = []
        for name, task in found.tasks.items():
            values = [item["metrics"].get(task["primary"]) for item in found.items if item["task"] == name]
            if values and None not in values:  # a group has no items of its own
                rows.append({"task": name, "metric": task["primary"], "chance": task["chance"], "items": values})
        return rows


@functools.lru_cache(maxsize=2)
def _built(config: str) -> "BuiltBenchmarks":
    """The tasks of a config, given as JSON."""
    from compress.evaluate.harness.benchmarks import BuiltBenchmarks

    return BuiltBenchmarks(build_from(EvalConfig, json.loads(config)))
