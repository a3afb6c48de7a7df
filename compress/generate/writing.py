"""A model's answers to prompts as a folder that is a data source: seeded, and continued after any stop."""

import contextlib
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compress.base.config import build_from, to_dict
from compress.base.currency import decisive, input_changes, output_changes, setting_changes
from compress.base.disk import read_json, sha256_tree, staged_folder, write_json, write_rows
from compress.base.errors import Faults, InputError, UsageError
from compress.base.journal import Header, journal_output, open_journal
from compress.base.machine import device_name, find_device, git_commit, versions
from compress.base.outputs import Output, check_outputs, has_record
from compress.base.processes import join, on_main
from compress.base.progress import say
from compress.base.records import manifest
from compress.base.units import format_count, format_seconds
from compress.data import require_apart, text_fingerprint
from compress.generate.answers import Writer
from compress.generate.config import GenerateConfig
from compress.generate.prompts import Prompt, Prompts
from compress.generate.vllm import VllmWriter, vllm_version
from compress.inference.decoding import end_tokens
from compress.inference.readout import Checkpoint, load_checkpoint
from compress.model.facts import look_at_model
from compress.model.files import model_fingerprint, resolve_model
from compress.model.kinds import require_causal, require_text_alone

RECORD = "generate.json"
ROWS = "rows.jsonl"


@dataclasses.dataclass(frozen=True)
class GenerateResult:
    """What was written, as generate.json has it."""

    out: Path
    rows: int
    """Answers that were kept."""
    empty: int
    """Answers without text, which were left out."""
    unfinished: int
    """Answers that were cut off at `new_tokens`."""
    left_out: int
    """Of these, those that were left out."""
    unchanged: int
    """Answers that were to be written anew and stayed as they were: the new one was empty, unfinished, or disagreed."""
    prompt_tokens: int
    new_tokens: int
    """Tokens written, ends included."""
    seconds: float
    """Of the last call, loading included."""
    manifest: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The result as plain JSON data."""
        return {**dataclasses.asdict(self), "out": str(self.out)}

    def describe(self) -> str:
        """The result for people, a few lines."""
        rate = self.new_tokens / max(self.seconds, 1e-9)
        lines = [
            f"{self.rows:,} answers, {format_count(self.new_tokens)} tokens, {format_seconds(self.seconds)}, "
            f"{rate:,.0f} tokens/s",
            f"written to {self.out}",
        ]
        if self.unfinished:
            left = f"{self.left_out} of them left out" if self.left_out else "kept"
            lines.insert(1, f"{self.unfinished} were cut off at new_tokens, {left}")
        if self.unchanged:
            lines.insert(1, f"{self.unchanged} answers stayed as they were")
        if self.empty:
            lines.insert(1, f"{self.empty} ended at once, and were left out")
        return "\n".join(lines)


def generate(model: str | Path, prompts: str, out: Path, config: GenerateConfig | None = None) -> GenerateResult:
    """Let a model answer the prompts of a SOURCE (see `Prompts`), and write the folder `out`: rows.jsonl, of `text`
    or `messages`, in the order of the prompts, and generate.json.

    `out` is a SOURCE like any other. What was written before a stop or a kill is kept beside it (see
    `compress.base.journal`), and the finished files are those of a call that nothing stopped, on the same device with
    the same number of threads. Called again, the finished result is returned. The processes of a launch share batches.

    Raises:
        UsageError: `out` is not free, or holds what was written otherwise; options that do not go together.
        InputError: the model or the prompts cannot be used, or no answer is left.
    """
    started = time.monotonic()
    config = build_from(GenerateConfig, to_dict(config or GenerateConfig()), "the options")
    join()
    inputs = on_main(lambda: _check(model, prompts, out, config))
    if (out / RECORD).is_file():
        return _finished(out, config, inputs)
    engine = vllm_version(config)
    with contextlib.ExitStack() as opened:
        journal = opened.enter_context(open_journal(out, _header(config, inputs, engine)))
        source = Prompts.of(prompts, config)
        framing = on_main(lambda: source.framing(config, resolve_model(str(model))))
        device = config.device if engine is None else "cpu"  # whose memory vLLM wants for itself
        checkpoint = load_checkpoint(model, dtype=config.dtype, device=device, framing=framing)
        asked = source.read(checkpoint, config)
        writer = Writer(checkpoint, config) if engine is None else VllmWriter(checkpoint, config)
        answers = writer.answers([prompt.ids for prompt in asked], journal)

        def publish() -> GenerateResult:
            rows, counts = _rows(asked, answers, checkpoint, config)
            if not rows:
                raise InputError(_nothing(counts, config))
            counts |= {"prompt_tokens": sum(len(each.ids) for each in asked) * config.samples}
            seconds = round(time.monotonic() - started, 3)
            with staged_folder(out) as partial:
                write_rows(partial / ROWS, rows)
                made = manifest(config=to_dict(config), inputs=inputs, outputs=sha256_tree(partial), seconds=seconds)
                record: dict[str, Any] = {"rows": len(rows), **counts, "seconds": seconds, "manifest": made}
                write_json(partial / RECORD, record)
            journal.remove()
            return GenerateResult(out=out, **record)

        return on_main(publish)


def _check(model: str | Path, prompts: str, out: Path, config: GenerateConfig) -> dict[str, Any]:
    """Refuse what cannot be done before anything is, and fingerprint what goes in."""
    faults = Faults()
    check_outputs([generated_output(out), journal_output(out)], faults)
    faults.of(lambda: require_apart(prompts, out))
    faults.of(lambda: find_device(config.device))
    faults.of(lambda: vllm_version(config))
    writer = look_at_model(str(model), faults)
    if writer is not None:
        faults.of(lambda: require_causal(writer.config, writer.name, "Generating text"))
        faults.of(lambda: require_text_alone(writer.config, writer.name, "Generating text"))
    faults.refuse()
    return {
        "model": model_fingerprint(resolve_model(str(model))),
        "prompts": text_fingerprint(prompts, config.text_column),
    }


def generated_output(out: Path) -> Output:
    """The folder that `generate` writes."""
    return Output(out, "what a model wrote", has_record(RECORD), folder=True)


def _finished(out: Path, config: GenerateConfig, inputs: dict[str, Any]) -> GenerateResult:
    record = read_json(out / RECORD)
    made = record["manifest"]
    differing = setting_changes(GenerateConfig, made["config"], to_dict(config))
    differing += input_changes(made["inputs"], inputs) + output_changes(out, made["outputs"])
    if differing:
        raise UsageError(
            f"{out} was written otherwise: {'; '.join(differing)}. Name another folder, or remove this one to write it "
            "anew."
        )
    say(f"{out} is written already.")
    return GenerateResult(out=out, **record)


def _header(config: GenerateConfig, inputs: dict[str, Any], engine: str | None) -> Header:
    """What decides every answer, beside its batch."""
    place = {"device": device_name(find_device(config.device)), "commit": git_commit(), "vllm": engine, **versions()}
    return {
        "config": decisive(GenerateConfig, to_dict(config)),
        "inputs": inputs,
        "environment": place,
    }


def _rows(
    prompts: Sequence[Prompt],
    answers: Sequence[Sequence[Sequence[int]]],
    checkpoint: Checkpoint,
    config: GenerateConfig,
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """The rows that are kept, in the order of the prompts, and what the answers came to."""
    ends = end_tokens(checkpoint.model, checkpoint.tokenizer)
    rows: list[dict[str, Any]] = []
    counts = dict.fromkeys(("empty", "unfinished", "left_out", "unchanged", "new_tokens"), 0)
    for prompt, own in zip(prompts, answers, strict=True):
        keeps = config.unfinished == "keep" or (config.unfinished == "auto" and prompt.messages is None)
        for answer in own:
            counts["new_tokens"] += len(answer)
            finished = answer[-1] in ends
            counts["unfinished"] += not finished
            row = prompt.answered(answer[:-1] if finished else answer, checkpoint.tokenizer)
            if row is not None and (finished or keeps):
                rows.append(row)
            elif (before := prompt.unchanged()) is not None:
                counts["unchanged"] += 1
                rows.append(before)
            else:
                counts["empty" if row is None else "left_out"] += 1
    return rows, counts


def _nothing(counts: dict[str, int], config: GenerateConfig) -> str:
    """Why no answer is left, and what to do."""
    if counts["left_out"]:
        return (
            f"No answer came to its end within {config.new_tokens} tokens: raise generate.new_tokens, or keep what is "
            "unfinished (generate.unfinished: keep)."
        )
    return (
        "The model ends each answer at once. A chat model wants its template (generate.chat: true for texts), and a "
        "base model texts to go on with (generate.prompt_tokens)."
    )
