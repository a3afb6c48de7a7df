"""The finished student: a plain Hugging Face checkpoint and distill.json, visible only when complete."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compress.base.config import to_dict
from compress.base.currency import Inputs, changes, input_changes, inputs_now, setting_changes
from compress.base.disk import read_json, sha256_tree, staged_folder, write_json
from compress.base.errors import UsageError
from compress.base.outputs import UNFINISHED, Output, has_only, has_record, has_rows
from compress.base.records import manifest
from compress.base.units import format_count, format_seconds
from compress.distill.config import DistillConfig
from compress.distill.loop.accelerator import TRACKED
from compress.distill.loop.checkpoint import begun_with
from compress.distill.loop.guard import skip_reason
from compress.distill.rollouts.state import rollouts_text
from compress.model.files import copy_side_files
from compress.model.load import no_transformers_bars

RECORD = "distill.json"


def student_output(out: Path) -> Output:
    """The folder of a trained student."""
    return Output(out, "a trained student", has_record(RECORD), folder=True)


def training_output(work: Path) -> Output:
    """The folder of a training: metrics.jsonl, checkpoints/, and what trackers write."""
    return Output(work, "a training", _is_training, folder=True)


def _is_training(folder: Path) -> bool:
    """Whether a folder has rows of ours; or, before there are any, nothing but what a training begins with."""
    log = folder / "metrics.jsonl"
    if has_rows("step", "tokens")(log):
        return True
    checkpoints = [path for path in (folder / "checkpoints").glob("*") if path.is_dir()]
    return (
        has_only(rf"metrics\.jsonl{UNFINISHED}|checkpoints|{TRACKED}")(folder)
        and has_only(r"step-[0-9]+(\.partial)?")(folder / "checkpoints")
        and all(map(has_only(rf"(model|optimizer)\.safetensors|(state|manifest)\.json{UNFINISHED}"), checkpoints))
        and _is_unwritten(log)
    )


def _is_unwritten(log: Path) -> bool:
    """Whether not even the first row is there, or the disk was full before its end."""
    if not log.is_file():
        return True
    with log.open("rb") as file:
        first = file.readline()
    return not first or (first.startswith(b'{"step": ') and not first.endswith(b"\n"))


@dataclasses.dataclass(frozen=True)
class DistillResult:
    """A finished distillation, as distill.json has it."""

    out: Path
    teacher: str | None
    student: str
    tokens: int
    """Tokens of the data that were read, counting repetitions: all are trained on, but in on-policy steps."""
    steps: int
    heldout_loss: float | None
    """What was minimised, on held-out rows, of the final student."""
    best_heldout_loss: float | None
    """The same of the best step, which is the one with the least `best_by`."""
    skipped_steps: int
    tokens_per_s: float
    seconds: float
    """Wall time of training, over all resumed runs."""
    flops: float
    mfu: float
    """Fraction of the device's peak FLOP/s."""
    peak_flops: dict[str, Any]
    """That peak, `flops_per_s`, and its `source`: the data sheet, or measured at start-up."""
    memory_plan: dict[str, int]
    """Bytes of each part at the peak, planned before the start."""
    peak_memory: int | None
    """Bytes that training added to the process at its peak, measured; None where the system does not tell."""
    manifest: dict[str, Any]
    heldout_kl: float | None = None
    """KL(teacher || student) at temperature 1 on held-out rows, nats a token, whatever was minimised: what students of
    one teacher are compared by. None without a teacher, as in a record of before it was measured."""
    heldout_hard: float | None = None
    """Cross-entropy of the next token on held-out rows, nats a token: the held-out loss of any language model."""
    heldout_kl_stderr: float | None = None
    """Its standard error; None where micro-batches were too few to say, as that of `heldout_hard`."""
    heldout_hard_stderr: float | None = None
    heldout_sources: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    """Of each source of a blend: `kl`, `hard` and their standard errors on its held-out rows, of the final student."""
    heldout_documents: int | None = None
    """Documents that the held-out rows are from. None in a record that does not say."""
    best_heldout_kl: float | None = None
    best_heldout_hard: float | None = None
    best_by: str = "heldout_loss"
    """The measure that the best step, and the best checkpoint, has least of."""
    teacher_kl: float | None = None
    """KL(exact || quantised teacher) on held-out rows, nats a token, of several the largest; None where the teacher was
    exact."""
    cache: dict[str, Any] | None = None
    """The cache that was read in the teacher's place: folder, kind, bytes, bytes_per_token. None where it ran."""
    mixture: dict[str, Any] | None = None
    """Several teachers: `of` what the mixture is, `teachers` (model, fingerprint), and their `shares` by source, in
    words. None of one teacher."""
    aligned: dict[str, Any] | None = None
    """Of a teacher with another tokenizer: the share of the student's tokens that are compared with its own, how many
    of those there are for each (`teacher_tokens`), and the `rows` this is measured on. None where it has the same."""
    processes: int = 1
    """In the last of its runs."""
    shard: str = "none"
    """Whose weights were split over them."""
    precision: str | None = None
    """bf16 or fp32: what `auto` came to. None in a record that does not say."""
    micro_batch_rows: int | None = None
    """Sequences at most that went through a model at once, per process. None in a record that does not say."""
    together: int = 1
    """Students that were trained side by side on one forward pass of the teacher, in the last of its runs."""
    reached: bool = False
    """Whether it ended before its last step, at the target that was asked for."""
    compiled: bool = False
    """Whether models were compiled, where they make one graph."""
    parameters: int | None = None
    """Of the student. None in a record that does not say, as of those that are trained."""
    trained_parameters: int | None = None
    """Of its own, or of adapters."""
    selection: dict[str, Any] | None = None
    """What of the text was learned from, and how hard it was; None where all was, in random order."""
    on_policy: dict[str, Any] | None = None
    """What the student wrote to learn from, and at what rates it wrote and learned; see `Rollouts`. None where it
    learned from the data alone."""
    attention: str | None = None
    """How the student computed attention, as transformers calls it. None in a record that does not say."""

    def to_dict(self) -> dict[str, Any]:
        """The result as plain JSON data."""
        return {**dataclasses.asdict(self), "out": str(self.out)}

    def describe(self) -> str:
        """The result for people, a few lines."""
        target = "" if not self.reached else ", ended at its target" if self.steps else ", at its target as it began"
        lines = [
            f"{format_count(self.tokens)} tokens in {self.steps} steps, {format_seconds(self.seconds)}, "
            f"{self.tokens_per_s:,.0f} tokens/s{target}",
            f"written to {self.out}",
        ]
        if measures := self._describe_heldout():
            lines.insert(1, measures)
        for name, found in reversed(self.heldout_sources.items()):
            told = [f"{title} {found[key]:.4f}" for title, key in (("KL", "kl"), ("loss", "hard")) if key in found]
            lines.insert(2, f"held-out {name}: {', '.join(told)}")
        if self.aligned is not None:
            lines.insert(1, f"{self.aligned['share']:.1%} of tokens aligned with the teacher's own tokenizer")
        if self.parameters and self.trained_parameters not in (None, self.parameters):
            lines.insert(
                1, f"trained: {format_count(self.trained_parameters)} of {format_count(self.parameters)} parameters"
            )
        if self.on_policy:
            lines.insert(1, rollouts_text(self.on_policy))
        if self.mixture:
            lines.insert(1, f"taught by {self.mixture['shares']}")
        if self.skipped_steps:
            reason = skip_reason(self.manifest["config"]["spike_sigma"])
            lines.insert(
                1, f"{self.skipped_steps} step{'s were' if self.skipped_steps > 1 else ' was'} skipped: {reason}"
            )
        return "\n".join(lines)

    def _describe_heldout(self) -> str:
        """What it is compared by, and in a record without that what it minimised."""
        names = {"KL from the teacher": "heldout_kl", "loss": "heldout_hard"}
        if self.heldout_hard is None:
            names = {"loss": "heldout_loss"}
        told = [
            f"held-out {title} {now:.4f}{self._error(name)} (best {getattr(self, f'best_{name}'):.4f})"
            for title, name in names.items()
            if (now := getattr(self, name)) is not None
        ]
        over = f", over {self.heldout_documents} documents" if told and self.heldout_documents else ""
        return ", ".join(told) + over

    def _error(self, name: str) -> str:
        stderr = getattr(self, f"{name}_stderr", None)
        return "" if stderr is None else f" ± {stderr:.4f}"


def finished(out: Path, config: DistillConfig, inputs: Mapping[str, Any]) -> DistillResult | None:
    """The result in `out` if it was made from this config and these inputs; None if `out` holds no result.

    Raises:
        UsageError: `out` holds a student made otherwise, or one that was altered since.
    """
    path = out / RECORD
    if not path.is_file():
        return None
    if changes := changes_since(out, config, inputs):
        raise UsageError(
            f"{out} holds a student made otherwise ({'; '.join(changes)}). Name another output folder, or remove it."
        )
    return DistillResult(out=out, **read_json(path))


def changes_since(out: Path, config: DistillConfig, inputs: Mapping[str, Any]) -> list[str]:
    """What differs between the finished student in `out` and one made from this config and these inputs."""
    made = read_json(out / RECORD)["manifest"]
    return changes(out, made, kind=DistillConfig, config=to_dict(config), inputs=inputs)


def begun_otherwise(work: Path, config: DistillConfig, inputs: Inputs) -> list[str]:
    """What differs between the training whose checkpoints are in `work` and one with this config and these inputs."""
    state = begun_with(work / "checkpoints")
    if state is None:
        return []
    found = setting_changes(DistillConfig, state["config"], to_dict(config))
    return found + input_changes(state["inputs"], inputs_now(inputs))


def publish(
    out: Path, model: Any, source: Path, config: DistillConfig, inputs: Mapping[str, Any], facts: dict[str, Any]
) -> DistillResult:
    """Write the trained `model`, with the side files of the student it started from, and make it visible as `out`.

    `facts` are the fields of `DistillResult` but `out` and `manifest`.
    """
    with staged_folder(out) as partial:
        with no_transformers_bars():
            model.save_pretrained(partial)
        copy_side_files(source, partial)
        made = manifest(
            config=to_dict(config),
            inputs=inputs,
            outputs=sha256_tree(partial),
            seconds=facts["seconds"],
            seed=config.seed,
        )
        record = {**facts, "manifest": made}
        write_json(partial / RECORD, record)
    return DistillResult(out=out, **record)
