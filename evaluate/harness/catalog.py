"""Building tasks with their data, and saying all at once what would refuse to."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compress.base.errors import Faults, InputError, UsageError
from compress.evaluate.config import EvalConfig
from compress.evaluate.harness.local_data import (
    DatasetUnavailable,
    Splits,
    is_local,
    last_local_splits,
    local_datasets,
    why_not_on_hub,
)
from compress.evaluate.harness.names import find_tasks, leaf_tasks, manager_for, require_known
from compress.evaluate.harness.patches import quiet_harness
from compress.evaluate.presets import split_shots
from compress.evaluate.scores import identity


def build_tasks(config: EvalConfig) -> dict[str, Any]:
    """Build the tasks of `config`: `{"tasks": {name: Task}, "groups": {name: Group}}`, few-shot numbers and seeds set.

    Call it inside `local_datasets`.

    Raises all that is wrong at once:
        UsageError: an unknown name (the nearest known ones are given), a task folder that does not exist, two numbers
            of shots for one task, shots for a task that is defined without, or a task that runs what a model writes
            or shows it pictures.
        InputError: a data set, the split to evaluate, or the split of few-shot examples is not there.
    """
    asked, names, root = _asked(config)
    faults = Faults()
    faults.of(lambda: _require_root(root))
    manager = faults.of(lambda: find_tasks(names, config.task_folder))
    faults.refuse()
    loaded: dict[str, Any] = {"tasks": {}, "groups": {}}
    members: dict[str, list[str]] = {}
    for name in names:
        built = faults.of(lambda name=name: _build(name, names, manager, root))  # type: ignore[misc]
        if built is not None:
            loaded["tasks"].update(built["tasks"])
            loaded["groups"].update(built.get("groups", {}))
            members[name] = list(built["tasks"])
    shots = faults.of(lambda: _shots_by_task([each for each in asked if each[0] in members], members)) or {}
    if identity.TASK in loaded["tasks"]:
        loaded["tasks"][identity.TASK].dataset = identity.data(config.identity)
    for name, task in loaded["tasks"].items():
        faults.of(lambda name=name, task=task: _refuse_unfit(name, task))  # type: ignore[misc]
        faults.of(lambda name=name, task=task: _set_fewshot(name, task, shots.get(name), config))  # type: ignore[misc]
    faults.refuse()
    return loaded


def check_tasks(config: EvalConfig, *, download: bool = True) -> None:
    """Find out what would refuse the tasks of `config`; raises as `build_tasks`.

    Without `download`, a data set that is not on this machine is only looked up on the hub.
    """
    asked, names, root = _asked(config)
    faults = Faults()
    faults.of(lambda: _require_root(root))
    manager = faults.of(lambda: manager_for(names, config.task_folder))
    if manager is not None:
        for name in names:
            faults.of(lambda name=name: require_known(name, manager, config.task_folder))  # type: ignore[misc]
            if name in manager.task_index and (root is None or root.is_dir()):
                faults.of(lambda name=name: _require_data(name, manager, root))  # type: ignore[misc]
    faults.refuse()

    def is_here(name: str) -> bool:
        assert manager is not None
        datasets = [dataset for _, dataset in leaf_tasks(manager.task_index, name)]
        return all(dataset is not None and is_local(root, dataset) for dataset in datasets)

    here = [task for task, (name, _) in zip(config.tasks, asked, strict=True) if download or is_here(name)]
    with quiet_harness(), local_datasets(root):
        build_tasks(dataclasses.replace(config, tasks=here))


def _asked(config: EvalConfig) -> tuple[list[tuple[str, int | None]], list[str], Path | None]:
    """The tasks that are asked for, with their shots; their names, each once; and the folder of local data sets."""
    asked = [split_shots(task) for task in config.tasks]
    root = None if config.datasets_root is None else Path(config.datasets_root)
    return asked, list(dict.fromkeys(name for name, _ in asked)), root


def _require_data(name: str, manager: Any, root: Path | None) -> None:
    """Refuse a task whose data set is neither here nor on the hub, which is asked once and for nothing else.

    Raises:
        InputError: it is not, or the hub does not answer.
    """
    for dataset in dict.fromkeys(dataset for _, dataset in leaf_tasks(manager.task_index, name)):
        if dataset is not None and not is_local(root, dataset) and (reason := why_not_on_hub(dataset)):
            raise InputError(_explain_missing(DatasetUnavailable(dataset, reason), name, [name], manager, root))


def _require_root(root: Path | None) -> None:
    if root is not None and not root.is_dir():
        raise UsageError(
            f"The datasets root {root} does not exist; it holds ORG/NAME folders made by "
            f"`hf download ORG/NAME --repo-type dataset --local-dir {root}/ORG/NAME`."
        )


def _build(name: str, names: Sequence[str], manager: Any, root: Path | None) -> dict[str, Any]:
    """The tasks and groups that one of the `names` stands for, with their data."""
    try:
        built: dict[str, Any] = manager.load(name)
    except DatasetUnavailable as error:
        raise InputError(_explain_missing(error, name, names, manager, root)) from error
    except (IndexError, KeyError, ValueError, TypeError, AssertionError) as error:
        raise InputError(
            f"The task {name} does not fit its data set ({type(error).__name__}: {error})."
            f"{last_local_splits()} A task needs the splits and the columns that its YAML names."
        ) from error
    return built


def _refuse_unfit(name: str, task: Any) -> None:
    if getattr(task, "UNSAFE_CODE", False):
        raise UsageError(f"The task {name} runs the code that a model writes, which this tool does not: leave it out.")
    if getattr(task, "MULTIMODAL", False):
        raise UsageError(f"The task {name} asks about pictures or sound, and causal LMs read text: leave it out.")


def _shots_by_task(asked: Sequence[tuple[str, int | None]], members: Mapping[str, list[str]]) -> dict[str, int | None]:
    """The shots that `NAME@SHOTS` asks for, by task; None where no name that stands for it says."""
    shots: dict[str, int | None] = {}
    for name, number in asked:
        for task in members[name]:
            before = shots.get(task)
            if None not in (before, number) and before != number:
                raise UsageError(
                    f"The task {task} is asked for with {before} and with {number} shots, and a result has one place "
                    "for it: evaluate twice, into two files."
                )
            shots[task] = before if number is None else number
    return shots


def _explain_missing(
    error: DatasetUnavailable, name: str, names: Sequence[str], manager: Any, root: Path | None
) -> str:
    leaves = [leaf for each in names for leaf in leaf_tasks(manager.task_index, each)]
    task = next((leaf for leaf, dataset in leaves if dataset == error.dataset), name)
    place = root or Path("DIR")
    what = f"The task {task} needs the data set {error.dataset}, which cannot be loaded ({error})."
    if is_local(root, error.dataset):
        return f"{what} It was read from {place / error.dataset}: is the download complete?"
    absent = [dataset for _, dataset in leaves if dataset and not is_local(root, dataset)]
    absent = list(dict.fromkeys([error.dataset, *absent])) if root else [error.dataset]
    commands = "; ".join(f"`hf download {each} --repo-type dataset --local-dir {place / each}`" for each in absent[:12])
    more = f" (and {len(absent) - 12} more)" if len(absent) > 12 else ""
    where = f"Neither {place / error.dataset} nor the hub has it." if root else "The hub did not give it."
    return f"{what} {where} Where there is a network, run {commands}{more}, and give --datasets-root {place}."


def _set_fewshot(name: str, task: Any, asked: int | None, config: EvalConfig) -> None:
    """Apply lm-eval's rules for `num_fewshot`, then check that there are examples to draw."""
    own = task.get_config("num_fewshot")
    if own == 0 and asked:
        raise UsageError(f"The task {name} is defined without shots (its prompt has its examples): write {name}@0.")
    general = own if config.num_fewshot is None or own == 0 else config.num_fewshot
    shots = general if asked is None else asked
    task.set_config(key="num_fewshot", value=shots or 0)
    sampler = getattr(task, "sampler", None)
    if not shots or sampler is None:
        return
    settings = task.config
    split = task.fewshot_cfg.split or settings.training_split or settings.validation_split or settings.test_split
    needed = shots + (split == settings.test_split)
    if len(sampler.df) < needed:
        splits = task.dataset
        has = f" (it has {', '.join(map(str, splits))})" if isinstance(splits, Splits) else ""
        raise InputError(
            f"The task {name} at {shots} shots draws its examples from the split {split!r} of {task.DATASET_PATH}, "
            f"which holds {len(sampler.df)} here{has}, fewer than the {needed} it needs. Download that split too, or "
            f"ask for fewer ({name}@0, or --num-fewshot)."
        )
