"""Running lm-eval's tasks on a checkpoint, and its results as scores by task and group."""

import contextlib
import dataclasses
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lm_eval import evaluator
from lm_eval.defaults import DEFAULT_RANDOM_SEED

from compress.base.disk import sha256_json
from compress.base.errors import UsageError
from compress.base.journal import Journal
from compress.base.machine import seed_everything
from compress.base.processes import main_first
from compress.base.progress import working
from compress.evaluate.config import EvalConfig
from compress.evaluate.harness.catalog import build_tasks
from compress.evaluate.harness.local_data import local_datasets
from compress.evaluate.harness.patches import cached_templates, quiet_harness
from compress.evaluate.harness.scorer import Scorer
from compress.evaluate.scores.answers import answer_summary
from compress.evaluate.scores.identity import TASK
from compress.evaluate.scores.items import finite, metric_name, sample_items
from compress.evaluate.scores.scores import group_score, mean_and_stderr, primary_metric
from compress.inference.readout import Checkpoint

_BOOTSTRAP = 1000


@dataclasses.dataclass(frozen=True)
class Benchmarks:
    """`tasks`: scores by task and group name, as the eval JSON has them. `items`: one object an item, as its jsonl.
    `datasets`: hub ids of the data sets that were read from `config.datasets_root`."""

    tasks: dict[str, dict[str, Any]]
    items: list[dict[str, Any]]
    datasets: set[str]


class BuiltBenchmarks:
    """The tasks of a config, built with their data; every model that is scored is asked the same, in the same way.

    Raises:
        UsageError, InputError: see `build_tasks`.
    """

    def __init__(self, config: EvalConfig) -> None:
        self._config = config
        _seed(config)
        with _harness(config) as self._datasets, working("reading tasks and their data"):
            self._loaded = main_first(lambda: build_tasks(config))
        if TASK in self._loaded["tasks"] and not config.identity:
            raise UsageError(f"The task {TASK} needs the names to look for here: eval.identity: [FAMILY, MAKER].")

    def score(self, checkpoint: Checkpoint, journal: Journal, *, tell: bool = True) -> Benchmarks:
        """Score a model; finished batches go into `journal`, and those found there are not scored again. With `tell`,
        how the model is run is said.

        Raises:
            InputError: the model's context is too short for an answer.
        """
        config = self._config
        if config.chat_template:
            checkpoint = dataclasses.replace(checkpoint, prefix=())  # a chat begins as its template says
        _seed(config)  # building draws fewer numbers where `datasets` has a table cached
        for task in self._loaded["tasks"].values():
            task.set_fewshot_seed(seed=config.seed)
        with _harness(config) as datasets:
            scorer = Scorer(checkpoint, config.batch_tokens, journal, seed=config.seed, tell=tell)
            results = evaluator.evaluate(
                lm=scorer,
                task_dict=self._loaded,
                limit=config.limit,
                bootstrap_iters=_BOOTSTRAP,
                log_samples=True,
                system_instruction=config.system,
                apply_chat_template=config.chat_template,
                fewshot_as_multiturn=config.multiturn,
            )
            scorer.tell_of_chats()
            return _benchmarks(self._loaded, results, self._datasets | datasets)


@contextlib.contextmanager
def _harness(config: EvalConfig) -> Iterator[set[str]]:
    """lm-eval as we use it; the value is the data sets that were read from `config.datasets_root` so far."""
    root = None if config.datasets_root is None else Path(config.datasets_root)
    with quiet_harness(), cached_templates(), local_datasets(root) as datasets:
        yield datasets


def _benchmarks(loaded: dict[str, Any], results: Any, datasets: set[str]) -> Benchmarks:
    groups = {name: [task.task_name for task in group.get_all_tasks()] for name, group in loaded["groups"].items()}
    scores: dict[str, dict[str, Any]] = {}
    metrics: dict[str, list[str]] = {}
    items: list[dict[str, Any]] = []
    for name, task in loaded["tasks"].items():
        own = sample_items(task, results["samples"][name])
        scores[name], metrics[name] = _task_score(task, own, results["results"][name])
        member_of = [group for group, members in groups.items() if name in members]
        items += [{"task": name, "groups": member_of, **item} for item in own]
    for name, members in groups.items():
        scores[name] = group_score({member: scores[member] for member in members}, metrics)
        scores[name]["data_sha256"] = sha256_json([scores[member]["data_sha256"] for member in members])
        scores[name]["answers"] = answer_summary([item for item in items if item["task"] in members])
    return Benchmarks(scores, items, datasets)


def _seed(config: EvalConfig) -> None:
    """Seed all generators; Python's own as lm-eval does, for tasks that shuffle their options with it."""
    seed_everything(config.seed)
    random.seed(DEFAULT_RANDOM_SEED)


def _task_score(task: Any, items: list[dict[str, Any]], harness: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The JSON of one task, and its metrics' names: lm-eval's own aggregates, then means of what we added."""
    scores: dict[str, Any] = {}
    metrics: list[str] = []
    for key, value in harness.items():
        metric, comma, kind = key.partition(",")
        if not comma or metric.endswith("_stderr"):
            continue
        name = metric_name(metric, kind)
        metrics.append(name)
        scores[name], scores[f"{name}_stderr"] = finite(value), finite(harness.get(f"{metric}_stderr,{kind}"))
    for name in items[0]["metrics"]:
        if name not in scores:
            metrics.append(name)
            scores[name], scores[f"{name}_stderr"] = mean_and_stderr([item["metrics"][name] for item in items])
    chances = [item["chance"] for item in items if item["chance"] is not None]
    return {
        **scores,
        "chance": sum(chances) / len(chances) if len(chances) == len(items) else None,
        "n": len(items),
        "num_fewshot": task.get_config("num_fewshot"),
        "primary": primary_metric(metrics),
        "data_sha256": sha256_json([item["doc_sha256"] for item in items]),
        "answers": answer_summary(items),
    }, metrics
