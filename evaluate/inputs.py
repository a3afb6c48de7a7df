"""What an evaluation is made from, by content: what its JSON remembers, and whether that is still so."""

import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from compress.base.currency import Inputs, Missing
from compress.base.disk import read_json
from compress.base.errors import CompressError
from compress.data import text_fingerprint
from compress.evaluate.config import EvalConfig
from compress.evaluate.harness.local_data import data_fingerprint, folder_fingerprint
from compress.model.files import model_fingerprint, resolve_model


def evaluation_inputs(
    model: Callable[[], Path],
    config: EvalConfig,
    *,
    teacher: Callable[[], Path] | None = None,
    text: Callable[[], Path] | None = None,
    earlier: Path,
) -> Inputs:
    """How to find the `inputs` that the manifest of the eval JSON `earlier` would have now: fingerprints of the model,
    the teacher, the text, the other text if there is to be one, and the files of the benchmarks that it was made from.

    Benchmark files that are not there now (a disk that is not mounted) cannot be compared: nothing could be scored anew
    without them.
    """

    def benchmarks() -> dict[str, Any] | None:
        inputs = read_json(earlier)["manifest"]["inputs"] if earlier.is_file() else {}
        made = inputs.get("benchmarks") or {"task_folder": None, "datasets": {}}
        found = benchmark_inputs(config, made["datasets"])
        if found is None:
            return None
        absent = [name for name, content in found["datasets"].items() if content is None]
        known = {name: content or made["datasets"][name] for name, content in found["datasets"].items()}
        tasks = found["task_folder"]
        if config.task_folder is not None and tasks is None and made["task_folder"] is not None:
            tasks = made["task_folder"]
            absent.append("the task folder")
        merged = {"task_folder": tasks, "datasets": known}
        if absent and merged == made:
            raise Missing(f"not there: {', '.join(absent)}")
        return merged

    def other_text(source: str) -> dict[str, Any]:
        try:
            return text_fingerprint(source, config.text_column)
        except CompressError as error:
            raise Missing(str(error)) from error

    inputs: dict[str, Callable[[], Any]] = {
        "model": lambda: model_fingerprint(model()),
        "teacher": lambda: None if teacher is None else model_fingerprint(teacher()),
        "text": lambda: None if text is None else text_fingerprint(text(), config.text_column),
        "benchmarks": benchmarks,
    }
    if config.other_text is not None:
        inputs["other_text"] = functools.partial(other_text, config.other_text)
    return inputs


def benchmark_inputs(config: EvalConfig, datasets: Iterable[str]) -> dict[str, Any] | None:
    """Fingerprints of the user's task definitions and of those `datasets` that are read from a folder, null for what is
    not there; None without tasks."""
    if not config.tasks:
        return None
    return {
        "task_folder": (config.task_folder and folder_fingerprint(Path(config.task_folder))) or None,
        "datasets": {} if config.datasets_root is None else data_fingerprint(Path(config.datasets_root), datasets),
    }


def fingerprints(
    config: EvalConfig, model: str | Path, teacher: str | Path | None, text: str | Path | None
) -> dict[str, Any]:
    """Of what goes into an evaluation, but for the benchmarks; raises as what reads it."""
    found = {
        "model": model_fingerprint(resolve_model(str(model))),
        "teacher": None if teacher is None else model_fingerprint(resolve_model(str(teacher))),
        "text": None if text is None else text_fingerprint(text, config.text_column),
    }
    if config.other_text is not None:
        found["other_text"] = text_fingerprint(config.other_text, config.text_column)
    return found
