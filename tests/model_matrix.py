"""The matrix: tiny teachers of every type are cut, and each student is held against what it must equal.

The oracle is the teacher itself in which hooks let each dropped layer return its input. It shares no code with the
check that `prune` makes.

    python tests/model_matrix.py TYPE ...      the rows of these types
    python tests/model_matrix.py --write       all types, each in a process of its own, into docs/model_types.md
    python tests/model_matrix.py --write TYPE ...      these only
"""

import contextlib
import dataclasses
import multiprocessing
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from model_zoo import TYPES, VOCABULARY, layer_stack, save_teacher, tiny_config
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig

from compress.base.disk import read_json
from compress.base.errors import CompressError
from compress.model.load import load_model
from compress.prune import plan_prune, prune

KEPT = {"alternate": (1, 3, 5), "0,5": (0, 5), "contiguous:4": (0, 1, 2, 5), "2:3": (2,), "0,1,3-5": (0, 1, 3, 4, 5)}
"""Every second layer, the ends, a block cut out, one layer, all but one."""
TOLERANCE = 1e-4
"""Of the largest logit, in fp32."""
_PROMPT, _NEW = 12, 6


@dataclasses.dataclass(frozen=True)
class Cell:
    """What a keep list gave for a type."""

    outcome: str
    """`right`, `refused`, `wrong` or `crashed`."""
    reason: str = ""
    rewritten: tuple[str, ...] = ()
    """Fields of config.json that the student has otherwise than its teacher."""


def run_type(model_type: str, keeps: Sequence[str] = tuple(KEPT)) -> dict[str, Cell]:
    """The outcome of every keep list for a type. Where no tiny model can be made, `prune` must refuse its config."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        try:
            save_teacher(folder / "teacher", model_type)
        except Exception as error:
            tiny_config(model_type).save_pretrained(folder / "teacher")
            return dict.fromkeys(keeps, _without_model(folder / "teacher", error))
        return {keep: _cell(folder, keep, number) for number, keep in enumerate(keeps)}


def _without_model(teacher: Path, why: Exception) -> Cell:
    try:
        plan_prune(str(teacher))
    except CompressError as error:
        return Cell("refused", _tidy(str(error), teacher.parent))
    return Cell("crashed", f"no tiny model: {_text(why)}")


def _cell(folder: Path, keep: str, number: int) -> Cell:
    out = folder / f"student-{number}"
    try:
        prune(folder / "teacher", out, keep)
    except CompressError as error:
        return Cell("refused", _tidy(str(error), folder))
    except Exception as error:
        return Cell("crashed", _text(error))
    try:
        problem = difference(folder / "teacher", out, KEPT[keep])
    except Exception as error:
        problem = _text(error)
    if problem:
        return Cell("wrong", problem)
    before, after = (read_json(path / "config.json") for path in (folder / "teacher", out))
    return Cell("right", rewritten=_changed(before, after))


def _changed(before: dict[str, Any], after: dict[str, Any]) -> tuple[str, ...]:
    names = sorted(name for name in before | after if before.get(name) != after.get(name))
    if "text_config" in names:
        return _changed(before["text_config"], after["text_config"])
    return tuple(names)


def _tidy(reason: str, folder: Path) -> str:
    return reason.replace(f"{folder}/", "")


@torch.no_grad()
def difference(teacher: Path, student: Path, kept: tuple[int, ...]) -> str:
    """How the student differs from the teacher without its dropped layers; empty when it does not.

    Compared are the logits without a cache, what `generate` writes with one, and the logits after saving and strict
    loading.
    """
    ids = torch.randint(3, VOCABULARY - 1, (2, 2 * _PROMPT), generator=torch.Generator().manual_seed(1))
    model = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32).eval()
    with skipped(model, kept):
        expected = _logits(model, ids)
        text = _greedy(model, ids[:, :_PROMPT])
        with_cache = _generated(model, ids[:, :_PROMPT])
    if not expected.std() > 0.01:
        return f"the oracle's logits say nothing: their deviation is {expected.std():.2g}"
    model = load_model(student, dtype=torch.float32)
    if not _close(found := _logits(model, ids), expected):
        return f"logits differ by {(found - expected).abs().max():.3g} of {expected.abs().max():.3g}"
    written = _generated(model, ids[:, :_PROMPT])
    if not (torch.equal(written, text) or torch.equal(written, with_cache)):
        return f"generate writes {written[:, _PROMPT:].tolist()} and the oracle {text[:, _PROMPT:].tolist()}"
    with tempfile.TemporaryDirectory() as again:
        model.save_pretrained(again)
        reloaded = load_model(Path(again), dtype=torch.float32)
        if not torch.equal(_logits(reloaded, ids), found):
            return "saving and loading again changes the logits"
    return ""


@contextlib.contextmanager
def skipped(model: Any, kept: tuple[int, ...]) -> Iterator[None]:
    """Let the layers that are not in `kept` return their input."""

    def identity(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        return type(output)([hidden, *output[1:]]) if isinstance(output, tuple | list) else hidden

    handles = [
        layer.register_forward_hook(identity, with_kwargs=True)
        for index, layer in enumerate(layer_stack(model))
        if index not in kept
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _logits(model: Any, ids: Tensor) -> Tensor:
    logits: Tensor = model(input_ids=ids, use_cache=False).logits
    return logits


def _greedy(model: Any, ids: Tensor) -> Tensor:
    """`ids` [B, S] and the most likely token after them, six times, computed anew each time."""
    for _ in range(_NEW):
        ids = torch.cat([ids, _logits(model, ids)[:, -1:].argmax(-1)], dim=1)
    return ids


def _generated(model: Any, ids: Tensor) -> Tensor:
    """What `generate` makes of `ids` [B, S] with its cache, six greedy tokens."""
    model.generation_config = GenerationConfig()
    settings = GenerationConfig(max_new_tokens=_NEW, do_sample=False, use_cache=True)
    text: Tensor = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
    return text


def _close(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).abs().max() <= TOLERANCE * max(1.0, expected.abs().max().item()))


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "docs" / "model_types.md"
_SECONDS = 900
_MARKS = {"right": "=", "refused": "–"}
_HEADER = """# Model types

Every causal LM of transformers {version}, made tiny (6 layers, of different kinds wherever the config has them) and cut
by five keep lists: `=` the student equals its teacher with the dropped layers skipped, in its logits, in what
`generate` writes with a cache, and after saving and strict loading; `–` the cut is refused before anything is written.
Right in every list: {right}; in some: {partly}; refused: {refused}; wrong: {wrong}.

`python tests/model_matrix.py --write` made this page; `make slow` compares it with a fresh run. The last column names
the fields of config.json that were rewritten beside the number of layers, and why a list was refused.

| type | {keeps} | rules and refusals |
|---|{rule}---|
"""


def run_apart(model_type: str) -> dict[str, Cell]:
    """`run_type` in a process of its own, which may crash or hang without harm to others."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["model_matrix"])
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(model_type, there))
    process.start()
    there.close()
    try:
        if here.poll(_SECONDS):
            return here.recv()  # type: ignore[no-any-return]
        return dict.fromkeys(KEPT, Cell("crashed", f"no answer in {_SECONDS} s"))
    except EOFError:
        process.join()
        return dict.fromkeys(KEPT, Cell("crashed", f"exit {process.exitcode}"))
    finally:
        process.kill()
        process.join()


def _answer(model_type: str, pipe: Any) -> None:
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    pipe.send(run_type(model_type))


def table_row(model_type: str, cells: dict[str, Cell]) -> str:
    """A type's line of the table."""
    marks = [_MARKS.get(cell.outcome, cell.outcome) for cell in cells.values()]
    fields = sorted({name for cell in cells.values() for name in cell.rewritten} - _COUNTS)
    reasons = list(dict.fromkeys(_short(cell.reason) for cell in cells.values() if cell.reason))
    words = [", ".join(f"`{name}`" for name in fields)] * bool(fields) + reasons[:2]
    return f"| {model_type} | {' | '.join(marks)} | {'; '.join(words)} |"


_COUNTS = {"num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "num_decoder_layers"}


def _short(reason: str) -> str:
    """A refusal's own words without what all refusals say."""
    for words in ("cannot be cut by layers: ", "cannot be cut so: ", "makes no language model: "):
        reason = reason.rpartition(words)[2]
    return reason.split(". ")[0].rstrip(".").replace("|", "\\|")[:200]


def written_rows(page: str) -> dict[str, str]:
    """The lines of a table by their types."""
    rows = [line for line in page.splitlines() if line.startswith("| ") and not line.startswith("| type ")]
    return {row.split(" | ")[0].removeprefix("| "): row for row in rows}


def marks(row: str) -> dict[str, str]:
    """What a line says of each keep list."""
    return dict(zip(KEPT, row.split(" | ")[1 : 1 + len(KEPT)], strict=True))


def table(rows: dict[str, str]) -> str:
    """The page with these lines."""
    counts = {"right": 0, "partly": 0, "refused": 0, "wrong": 0}
    for row in rows.values():
        found = set(marks(row).values())
        bad = found - set(_MARKS.values())
        counts["wrong" if bad else "partly" if len(found) > 1 else "right" if found == {"="} else "refused"] += 1
    keeps = " | ".join(f"`{keep}`" for keep in KEPT)
    head = _HEADER.format(version=transformers.__version__, keeps=keeps, rule="---|" * len(KEPT), **counts)
    return head + "".join(f"{rows[name]}\n" for name in sorted(rows))


def main(arguments: list[str]) -> None:
    """Print the rows of some types; with --write, put them, or those of all, into the table."""
    write = arguments[:1] == ["--write"]
    rows = written_rows(TABLE.read_text(encoding="utf-8")) if write and TABLE.exists() else {}
    for name in arguments[write:] or TYPES:
        rows[name] = table_row(name, run_apart(name))
        sys.stdout.write(f"{rows[name]}\n")
        sys.stdout.flush()
        if write:
            TABLE.write_text(table({name: row for name, row in rows.items() if name in TYPES}), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
