"""Named suites of tasks with their shots, and the `NAME@SHOTS` way to write a task in a flag or a recipe."""

import re
from collections.abc import Sequence

PRESETS: dict[str, tuple[str, ...]] = {
    "paper": (
        "mmlu@5",
        "hellaswag@0",
        "agieval_en@0",
        "squad_completion_verbatim@0",
        "arc_challenge@25",
        "openbookqa@0",
    ),
    "torchtune": ("truthfulqa_mc2@0", "hellaswag@0", "commonsense_qa@0"),
    "quick": ("openbookqa@0", "arc_easy@0", "arc_challenge@0"),
}
"""`paper`: the seed paper's suite; it does not state its shots: 5 and 25 are Meta's for Llama 3.2. `torchtune`: that of
its study of distillation. `quick`: three short ones, 4,048 questions, of which a small model answers some."""

_SHOTS = re.compile(r"(.+)@([0-9]{1,4})")


def expand(names: Sequence[str]) -> list[str]:
    """The tasks that `names` stand for: presets replaced by theirs, each task once.

    Raises:
        ValueError: a name with an `@` that no number follows, or a preset with shots of its own.
    """
    tasks: list[str] = []
    for name in names:
        task, shots = split_shots(name)
        if task in PRESETS and shots is not None:
            raise ValueError(
                f"{name}: the preset {task} has its own shots ({', '.join(PRESETS[task])}); name its tasks"
            )
        tasks += PRESETS.get(task, (name,))
    return list(dict.fromkeys(tasks))


def split_shots(name: str) -> tuple[str, int | None]:
    """`mmlu@5` -> (`mmlu`, 5); `mmlu` -> (`mmlu`, None).

    Raises:
        ValueError: an `@` that no number follows.
    """
    if "@" not in name:
        return name, None
    found = _SHOTS.fullmatch(name)
    if found is None:
        raise ValueError(f"{name}: write NAME@SHOTS, for example mmlu@5")
    return found[1], int(found[2])
