"""The whole measurement of one checkpoint, and the eval JSON it is written to."""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.base.config import to_dict
from compress.base.currency import decisive
from compress.base.disk import sha256_file, write_json, write_rows
from compress.base.errors import Faults, UsageError
from compress.base.journal import Header, Journal, journal_output, open_journal
from compress.base.machine import device_name, find_device, git_commit, versions
from compress.base.outputs import MADE_BY, Output, beside, check_outputs, has_manifest, has_rows
from compress.base.processes import join, on_main
from compress.base.progress import say
from compress.base.records import manifest
from compress.data import require_apart
from compress.evaluate.chat import chat_ids, prompting, tell_of_template
from compress.evaluate.config import EvalConfig
from compress.evaluate.drafting import measure_drafts
from compress.evaluate.inputs import benchmark_inputs, fingerprints
from compress.evaluate.preflight import check_evaluation, with_names
from compress.evaluate.speed import measure_speed
from compress.evaluate.text.heldout import Heldout, framing_of_text, load_heldout, retold
from compress.evaluate.text.language import heldout_scores
from compress.evaluate.text.samples import Encode, continuations, prompts_from_rows, response_similarity
from compress.inference.framing import own_framing
from compress.inference.readout import Checkpoint, load_checkpoint
from compress.model.facts import look_at_model
from compress.model.files import resolve_model
from compress.model.framing import Framing
from compress.model.kinds import kind_of
from compress.model.lengths import fit, shortest_context
from compress.model.load import load_config, load_tokenizer
from compress.model.parts import count_parameters
from compress.model.tokenizer import load_spec
from compress.model.vocabulary import same_tokens
from compress.report.judge.draft import draft_figures

if TYPE_CHECKING:
    from compress.evaluate.harness.benchmarks import Benchmarks, BuiltBenchmarks


def evaluate_model(
    model: str | Path,
    config: EvalConfig | None = None,
    *,
    teacher: str | Path | None = None,
    text: str | Path | None = None,
    out: Path | None = None,
    prompts: Sequence[str] = (),
    text_tokenizer: Path | None = None,
) -> dict[str, Any]:
    """Measure a checkpoint: benchmarks, held-out loss, fidelity to a teacher, speed, sample continuations.

    With a teacher the speed of both is measured in one run, in turns (`speed.teacher` is the teacher's).

    `model` and `teacher` are folders or hub ids. `text` is a token store, whose held-out rows are used, or a source of
    raw text (a local file, folder or glob, or a hub data set); `config.other_text` is another, and is scored as `text`
    is. `prompts` are continued greedily (answered, with `config.chat_template`); without them, starts of held-out rows
    are. `text_tokenizer` is the folder of the tokenizer that a token store was made with: a model of another reads the
    text of its rows. With `out`, the result is written there as JSON, and each benchmark item to
    `<stem>.items.jsonl` beside it (task, groups, and what `compress.evaluate.scores.items` lists), the JSON last.

    With `out`, finished batches are kept beside it (see `compress.base.journal`): stopped in any way and called
    again, it goes on, and the numbers are bit for bit those of a call that nothing stopped, on the same device with the
    same number of threads. The same holds for the processes of a launch, which all call this, share the batches, and
    get the same result; the main one alone measures speed and writes.

    Returns:
        The eval JSON: model, params, bytes (of the weight files), prompting (how prompts were written, see
        `compress.evaluate.chat`), tasks, identity (the names that the task of that name looked for), heldout, fidelity,
        other_text (source, and its own heldout and fidelity), speed, samples, versions, seconds (of this call),
        manifest. Parts not asked for are empty or null. With a teacher of another tokenizer there is no fidelity, but
        `teacher_heldout`: its loss on the same text.

    Raises:
        UsageError: an unknown task, a teacher without text, an output that cannot be written.
        InputError: a model, a benchmark's data or the text cannot be used.
    """
    started = time.monotonic()
    config = config or EvalConfig()
    join()
    writer = on_main(lambda: _writer(text_tokenizer, model))
    check = functools.partial(_check, config, model, teacher, text, out, as_it_is=writer is None)
    inputs, asked = on_main(check)
    if kind_of(load_config(resolve_model(str(model)))) == "masked":
        config, asked = config.of_masked(), asked.of_masked()
    reference = None if teacher is None else resolve_model(str(teacher))
    with contextlib.ExitStack() as opened:
        benchmarks = _build_benchmarks(asked) if config.tasks else None
        journal = opened.enter_context(open_journal(out, _header(config, inputs)))
        alike = reference is None or on_main(lambda: same_tokens(resolve_model(str(model)), reference))
        reader = reference if alike else None
        framing, other = (_framing(each, config, model, reader) for each in (text, config.other_text))
        if writer is not None:
            framing = own_framing(load_spec(model))
        checkpoint = load_checkpoint(model, dtype=config.dtype, device=config.device, framing=framing)
        texts = _Texts(
            heldout=_heldout(text, checkpoint, config, framing, writer),
            other=_heldout(config.other_text, checkpoint, config, other),
            prompts=prompts,
        )
        tell_of_template(config, checkpoint.tokenizer)
        scored = None if benchmarks is None else benchmarks.score(checkpoint, journal)
        guide = None
        if reference is not None:
            begun = framing if alike else own_framing(load_spec(reference))
            guide = load_checkpoint(reference, dtype=config.dtype, device=config.device, framing=begun)
        result = _measure(checkpoint, guide, asked, scored, texts, journal)
        items, datasets = ([], set()) if scored is None else (scored.items, scored.datasets)

        def publish() -> dict[str, Any]:
            seconds = time.monotonic() - started
            made: dict[str, Any] = {"versions": versions(), "seconds": round(seconds, 3)}
            outputs = {} if out is None or not items else _write_items(_items_path(out), items)
            read = {**inputs, "benchmarks": benchmark_inputs(config, datasets)}
            made["manifest"] = manifest(config=to_dict(config), inputs=read, outputs=outputs, seconds=seconds)
            if out is not None:
                write_json(out, result | made)
            journal.remove()
            return result | made

        return on_main(publish)


def _build_benchmarks(config: EvalConfig) -> "BuiltBenchmarks":
    from compress.evaluate.harness.benchmarks import BuiltBenchmarks

    return BuiltBenchmarks(config)


def _check(
    config: EvalConfig,
    model: str | Path,
    teacher: str | Path | None,
    text: str | Path | None,
    out: Path | None,
    *,
    as_it_is: bool,
) -> tuple[dict[str, Any], EvalConfig]:
    """Refuse what cannot be done before anything is, download the models, fingerprint what goes in, and find the names
    of the task `identity`. `as_it_is`: the model reads the tokens of the text."""
    faults = Faults()
    if out is not None:
        check_outputs(evaluation_outputs(out), faults)
    for source in (text, config.other_text):
        if out is not None and source is not None:
            faults.of(functools.partial(require_apart, str(source), out))
    measured = look_at_model(str(model), faults)
    reference = None if teacher is None else look_at_model(str(teacher), faults)
    if teacher is not None and text is None:
        faults.found.append(
            UsageError("Fidelity to a teacher is measured on held-out text: give it (--text SOURCE) or no teacher.")
        )
    read = str(text) if text is not None and as_it_is else None
    check_evaluation(config, model=measured, teacher=reference, text=read, faults=faults)
    if faults.found and config.tasks:  # else the tasks are built next, and say for themselves what is wrong
        from compress.evaluate.harness.catalog import check_tasks

        faults.of(lambda: check_tasks(config, download=False))
    faults.refuse()
    of = reference or measured
    assert of is not None
    return fingerprints(config, model, teacher, text), with_names(config, of)


def _header(config: EvalConfig, inputs: dict[str, Any]) -> Header:
    """What decides every result but the speed, which is never kept."""
    options = {
        name: value for name, value in decisive(EvalConfig, to_dict(config)).items() if not name.startswith("speed")
    }
    place = {"device": device_name(find_device(config.device)), "commit": git_commit(), **versions()}
    return {"config": options, "inputs": inputs, "environment": place}


def _framing(text: str | Path | None, config: EvalConfig, model: str | Path, teacher: Path | None) -> Framing:
    """How a text is framed, for the teacher where there is one: both read the same rows."""
    if text is None:
        return Framing()
    return on_main(lambda: framing_of_text(text, config, teacher or resolve_model(str(model))))


def _writer(text_tokenizer: Path | None, model: str | Path) -> Any | None:
    """The tokenizer of a text that the model does not have."""
    if text_tokenizer is None or same_tokens(text_tokenizer, resolve_model(str(model))):
        return None
    return load_tokenizer(text_tokenizer)


def _heldout(
    text: str | Path | None,
    checkpoint: Checkpoint,
    config: EvalConfig,
    framing: Framing,
    writer: Any | None = None,
) -> Heldout | None:
    return None if text is None else on_main(lambda: load_heldout(text, checkpoint, config, framing, writer))


@dataclasses.dataclass(frozen=True)
class _Texts:
    """What a model is measured on beside benchmarks."""

    heldout: Heldout | None
    other: Heldout | None
    prompts: Sequence[str]
    """Those that were given."""

    def chosen(self, checkpoint: Checkpoint, count: int, config: EvalConfig) -> list[str]:
        """The first `count` prompts that were given, else starts of held-out rows."""
        if self.prompts or self.heldout is None or self.heldout.inputs is not None or not count:
            return list(self.prompts)[:count]
        return prompts_from_rows(checkpoint, self.heldout.rows, count, config.sample_prompt_tokens)

    def encode(self, config: EvalConfig) -> Encode:
        """How these prompts are read: a user's as a chat if so asked for, a piece of text as it stands."""
        if self.prompts and config.chat_template:
            return functools.partial(chat_ids, system=config.system)
        return Checkpoint.prompt_ids


def _measure(
    checkpoint: Checkpoint,
    teacher: Checkpoint | None,
    config: EvalConfig,
    scored: "Benchmarks | None",
    texts: _Texts,
    journal: Journal,
) -> dict[str, Any]:
    """The measured part of the eval JSON."""
    result: dict[str, Any] = {
        MADE_BY: "compress eval",
        "model": checkpoint.name,
        "params": count_parameters(checkpoint.model),
        "bytes": sum(path.stat().st_size for path in checkpoint.folder.glob("*.safetensors")),
        "prompting": prompting(config, checkpoint.tokenizer),
        "tasks": {} if scored is None else scored.tasks,
        "identity": config.identity or None,
        "heldout": None,
        "fidelity": None,
        "other_text": None,
        "speed": None,
    }

    compared = teacher
    if teacher is not None and teacher.tokenizer.get_vocab() != checkpoint.tokenizer.get_vocab():
        compared = None
        say(
            f"{teacher.name} has another tokenizer: KL and agreement are defined over one vocabulary alone. Bits per "
            "byte of the same text are measured of both."
        )

    def scores(
        text: Heldout, stage: str, model: Checkpoint = checkpoint
    ) -> tuple[dict[str, Any], dict[str, Any] | None]:
        return heldout_scores(
            model,
            text.rows,
            text.text_bytes,
            documents=text.documents,
            answers=text.answers,
            sources=text.sources,
            inputs=text.inputs,
            teacher=compared,
            batch_tokens=config.batch_tokens,
            mask_every=config.mask_every,
            journal=journal,
            stage=stage,
        )

    if texts.heldout is not None:
        result["heldout"], result["fidelity"] = scores(texts.heldout, "Held-out text")
        if teacher is not None and compared is None:
            told = retold(texts.heldout, checkpoint.tokenizer, teacher)
            result["teacher_heldout"], _ = scores(told, "Held-out text, the teacher", teacher)
    if texts.other is not None:
        loss, near = scores(texts.other, "Other text")
        result["other_text"] = {"source": config.other_text, "heldout": loss, "fidelity": near}
    encode = texts.encode(config)
    config = _fitting(config, [checkpoint] if teacher is None else [checkpoint, teacher])
    asked = texts.chosen(checkpoint, config.responses, config)
    if compared is not None:
        alike = response_similarity(checkpoint, compared, asked, config.sample_tokens, journal, encode)
        result["fidelity"]["responses"] = alike
    if config.speed:
        result["speed"] = on_main(lambda: _speed(checkpoint, teacher, config))
        if compared is not None:
            result["fidelity"]["draft"] = draft_figures(result)
    if compared is not None and config.draft_tokens:
        reference = compared
        measured = on_main(lambda: measure_drafts(checkpoint, reference, asked, config, encode))
        result["fidelity"]["draft"] = {**(result["fidelity"].get("draft") or {}), "measured": measured}
    chosen = texts.chosen(checkpoint, config.samples, config)
    samples = continuations(checkpoint, chosen, config.sample_tokens, journal, encode)
    return {**result, "samples": samples}


def _fitting(config: EvalConfig, models: Sequence[Checkpoint]) -> EvalConfig:
    """The same, with samples cut to fit into the shortest context of the models."""
    limit = shortest_context(each.model.config for each in models)
    prompt, new = config.sample_prompt_tokens, config.sample_tokens
    if config.samples or config.responses:
        prompt, new = fit("Samples", prompt, new, limit)
    return dataclasses.replace(config, sample_prompt_tokens=prompt, sample_tokens=new)


def _speed(checkpoint: Checkpoint, teacher: Checkpoint | None, config: EvalConfig) -> dict[str, Any]:
    """The model's speed, and under `teacher` the teacher's, measured in turns."""
    models = {"model": checkpoint} if teacher is None else {"model": checkpoint, "teacher": teacher}
    found = measure_speed(models, config)
    return found["model"] if teacher is None else {**found["model"], "teacher": found["teacher"]}


def evaluation_outputs(out: Path) -> list[Output]:
    """What an evaluation into the JSON file `out` writes, in the order in which a run moves it aside."""
    return [
        journal_output(out),
        Output(_items_path(out), "the items of an evaluation", has_rows("task", "doc_sha256", "metrics")),
        Output(out, "an evaluation", has_manifest("model", "tasks")),
    ]


def _items_path(out: Path) -> Path:
    return beside(out, f"{out.stem}.items.jsonl")


def _write_items(path: Path, items: Sequence[dict[str, Any]]) -> dict[str, str]:
    write_rows(path, items)
    return {path.name: sha256_file(path)}
