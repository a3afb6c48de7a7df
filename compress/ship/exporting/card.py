"""The README.md of an exported model: what it came from, what it scores, whose licence it is under."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compress.base.currency import Missing
from compress.base.disk import read_json
from compress.base.documents import dump_data, load_yaml, parse_yaml
from compress.base.errors import CompressError, InputError
from compress.base.units import format_bytes, format_count
from compress.model.files import local_model
from compress.report.cells import NONE, layer_ranges
from compress.report.judge.scores import build_scores
from compress.report.pages.markdown import plain
from compress.report.run_files import Record, RunFiles, layers_of, lower_is_better, number, read_run

_HOW = {
    "int8": "linear layers in 8 bits with a scale for each row (torchao); the rest as it was",
    "int4": "linear layers in 4 bits with a scale for each group of a row (torchao), a byte each; the rest as it was",
    "gguf-f16": "a GGUF file in float16",
    "gguf-q8_0": "a GGUF file, matrices in 8 bits with a scale for each 32 weights",
    "gguf-q4_0": "a GGUF file, matrices in 4 bits with a scale for each 32 weights",
    "bf16": "safetensors in bfloat16",
    "f16": "safetensors in float16",
    "f32": "safetensors in float32",
}
_LICENCE_FILES = ("LICENSE*", "NOTICE*", "USE_POLICY*")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Origin:
    """What is known of where a model came from."""

    teacher: str | None
    prune: Record | None
    distill: Record | None
    run: RunFiles | None
    """The run that the model is the student of."""
    sources: Sequence[str]
    """The text it was healed on."""

    @classmethod
    def of(cls, folder: Path) -> "_Origin":
        """By the records in the model's folder and, where that lies in a run folder, by the run's."""
        prune, distill = (_record(folder / name) for name in ("prune.json", "distill.json"))
        run = _run_of(folder)
        if run is not None:
            prune = prune or run.prune
        teacher = (prune or distill or {}).get("teacher")
        return cls(
            teacher=teacher, prune=prune, distill=distill, run=run, sources=_sources(folder.parent) if run else ()
        )


def write_card(folder: Path, name: str, record: Mapping[str, Any]) -> str:
    """The text of README.md for the model `name` in `folder`, exported as export.json's `record` says."""
    origin = _Origin.of(folder)
    title = Path(name).name if origin.run is None else origin.run.name
    parts = [
        _front(origin, folder, record),
        f"# {plain(title)}, {record['format']}",
        _what(origin, record),
        _use(record),
        _scores(origin),
        _licence(origin, folder),
        "Made with `compress export`; export.json has the hashes of all files.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front(origin: _Origin, folder: Path, record: Mapping[str, Any]) -> str:
    """The metadata that the hub reads."""
    data: dict[str, Any] = {"tags": ["compress", *(["gguf"] if record["file"] else [])]}
    if record["file"] is None:
        data["library_name"] = "transformers"
    data["pipeline_tag"] = "text-generation"
    if origin.teacher is not None and _is_hub_id(origin.teacher):
        data["base_model"] = origin.teacher
    said = _said_licence(origin.teacher)
    files = _licence_files(folder)
    data |= said or ({"license": "other", "license_link": files[0]} if files else {})
    return f"---\n{dump_data(data)}---"


def _what(origin: _Origin, record: Mapping[str, Any]) -> str:
    """How the model was made, in sentences."""
    lines = [
        f"{format_count(record['params'])} parameters, {format_bytes(record['bytes'])}: {_HOW[record['format']]}. "
        f"The model it was made from takes {format_bytes(record['bytes_before'])}."
    ]
    if origin.prune is not None:
        kept, dropped = layers_of(origin.prune)
        lines.append(
            f"A cut of {_shown(origin.teacher)}: {len(kept)} of {len(kept) + len(dropped)} transformer layers stay "
            f"({layer_ranges(kept)})."
        )
    if origin.distill is not None:
        text = f" of {', '.join(origin.sources)}" if origin.sources else ""
        taught = f", taught by {_shown(origin.distill['teacher'])}" if origin.distill.get("teacher") else ""
        lines.append(f"Trained on {format_count(origin.distill['tokens'])} tokens{text}{taught}.")
    return " ".join(lines)


def _use(record: Mapping[str, Any]) -> str:
    if record["file"] is not None:
        code = f"llama-cli -m {record['file']}"
        return f"```sh\n{code}\n```"
    needs = "pip install transformers torchao" if record["format"] in ("int8", "int4") else "pip install transformers"
    return (
        f"```sh\n{needs}\n```\n\n```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'model = AutoModelForCausalLM.from_pretrained("PATH")\ntokenizer = AutoTokenizer.from_pretrained("PATH")\n```'
    )


def _scores(origin: _Origin) -> str:
    """Scores of the model before it was exported, beside its teacher's, with 95% intervals."""
    if origin.run is None:
        return ""
    evals, labels = origin.run.evals, origin.run.labels
    scores = build_scores(evals)
    rows = [
        [name, *(_interval(entry.get(key), entry["metric"]) for key in evals)]
        for name, entry in scores.items()
        if entry["part_of"] is None
    ]
    rows += [
        ["held-out loss, nats a token", *(_nats(record.get("heldout"), "loss_nats") for record in evals.values())],
        ["KL to the teacher, nats a token", *(_nats(record.get("fidelity"), "kl_nats") for record in evals.values())],
    ]
    head = ["", *(labels[key] for key in evals)]
    table = "\n".join("| " + " | ".join(row) + " |" for row in (head, [":--", *["--:"] * len(evals)], *rows))
    return (
        "## Scores\n\nOf the models before the export; percent with 95% intervals, of losses ± a standard error.\n\n"
        f"{table}"
    )


def _interval(score: Record | None, metric: str | None) -> str:
    if score is None or score["value"] is None:
        return NONE
    scale = 1 if lower_is_better(metric) or score["value"] > 1 else 100
    interval = score["ci95"]
    shown = f"{scale * score['value']:.1f}"
    return shown if interval is None else f"{shown} [{scale * interval[0]:.1f}, {scale * interval[1]:.1f}]"


def _nats(record: Record | None, key: str) -> str:
    value, error = (number((record or {}).get(name)) for name in (key, f"{key}_stderr"))
    return NONE if value is None else f"{value:.4f}" + ("" if error is None else f" ± {error:.4f}")


def _licence(origin: _Origin, folder: Path) -> str:
    teacher = _shown(origin.teacher) if origin.teacher else "the model it was made from"
    files, said = _licence_files(folder), _said_licence(origin.teacher)
    named = f" ({said['license']})" if said else ""
    where = f"; it is in {', '.join(files)}" if files else ""
    unknown = "" if named or where else "; no file here says which that is, so look it up before you share this model"
    return f"## Licence\n\nThat of {teacher}{named}{where}{unknown}."


def _licence_files(folder: Path) -> list[str]:
    return sorted(path.name for pattern in _LICENCE_FILES for path in folder.glob(pattern))


def _said_licence(teacher: str | None) -> dict[str, str]:
    """What the teacher's own README.md, where it is on this machine, says of its licence to the hub."""
    if teacher is None:
        return {}
    try:
        text = (local_model(teacher, None) / "README.md").read_text(encoding="utf-8")
        front = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
        data = parse_yaml(front[1], "README.md").data if front else {}
    except (OSError, ValueError, Missing, CompressError):
        return {}
    wanted = ("license", "license_name", "license_link")
    return {key: data[key] for key in wanted if isinstance(data.get(key), str)} if "license" in data else {}


def _is_hub_id(name: str) -> bool:
    return _HUB_ID.fullmatch(name) is not None and not Path(name).exists()


def _shown(name: Any) -> str:
    """A model's name, of a folder the last part alone: the rest is of this machine."""
    return plain(str(name) if _is_hub_id(str(name)) else Path(str(name)).name)


def _record(path: Path) -> Record | None:
    found = read_json(path) if path.is_file() else None
    return found if isinstance(found, dict) else None


def _run_of(folder: Path) -> RunFiles | None:
    """The run whose healed student lies in `folder`; None of none that was evaluated."""
    if folder.name != "student":
        return None
    try:
        return read_run(folder.resolve().parent)
    except InputError:
        return None


def _sources(run: Path) -> list[str]:
    """Names of the text in a run's recipe, of local files the last part alone."""
    recipe = load_yaml(run / "recipe.yaml").data if (run / "recipe.yaml").is_file() else {}
    data = recipe.get("data") or {}
    parts = data.get("sources") or [data]
    named = [str(part["dataset"]) for part in parts if part.get("dataset")]
    return [plain(Path(name).name if Path(name).exists() else name) for name in named]
