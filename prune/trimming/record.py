"""What trim.json says, and the result that carries it."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from compress.base.currency import Inputs
from compress.base.disk import sha256_json
from compress.base.outputs import Output
from compress.base.units import format_bytes
from compress.data import DataConfig
from compress.prune.trimming.config import TrimConfig

RECORD = "trim.json"


def trimmed_output(out: Path) -> Output:
    """The folder of a trimmed model, which no other may take the place of."""
    return Output(out, "a trimmed model", ours=None, folder=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrimResult:
    """A trimmed model on disk. `record` is the content of its trim.json."""

    out: Path
    record: dict[str, Any]

    def describe(self) -> str:
        """The result for people, a few lines."""
        record = self.record
        before, after = record["params_before"], record["params_after"]
        lines = [
            f"{record['model']}: {record['vocab_after']:,} of {record['vocab_before']:,} ids stay",
            f"parameters   {before:,} -> {after:,} ({1 - after / before:.1%} fewer)",
            f"weights      {format_bytes(record['bytes_before'])} -> {format_bytes(record['bytes_after'])}",
        ]
        for name, text in record["text"].items():
            if text["documents"]:
                lines.append(
                    f"{name:<12} {text['same_pieces']:.1%} of {text['documents']:,} documents in the same pieces, "
                    f"{text['tokens_before']:,} -> {text['tokens_after']:,} tokens"
                )
        if (skipped := record["check"]["skipped"]) is not None:
            lines.append(f"not compared with the whole model: {skipped}")
        else:
            apart = record["check"]["max_abs_difference"]
            lines.append(f"logits of these ids: {f'within {apart:.2g}' if apart else 'the same, bit for bit'}")
        return "\n".join([*lines, f"written to {self.out}"])


def texts_of(config: TrimConfig, run_text: DataConfig | None) -> Sequence[DataConfig]:
    """Each source of the text to count: what `config` names, or else a run's."""
    if config.data is not None:
        return (DataConfig(dataset=config.data, text_column=config.text_column, tokens=1),)
    return () if run_text is None else run_text.parts()


def trim_inputs(model: Callable[[], Any], texts: Sequence[DataConfig]) -> Inputs:
    """Fingerprints of what `trim` reads, for its manifest; `model` finds the model's."""
    return {"model": model, "text": lambda: _text_fingerprint(texts)}


def _text_fingerprint(texts: Sequence[DataConfig]) -> list[Any]:
    """By content what is local, by name what is on the hub."""
    from compress.data import find_source

    found = []
    for text in texts:
        source = find_source(dataclasses.replace(text, tokens=text.tokens or 1))
        listing = source.listing()
        if listing["kind"] == "local":
            files = {file["name"]: file["sha256"] for file in source.fingerprint(len(source.files))["files"]}
            listing = {"files": sha256_json(files)}
        found.append({**listing, "text_column": text.text_column, "form": text.form})
    return found
