"""A trimmed model beside the whole one: size, speed, and what either makes of text, byte by byte.

    python benchmarks/trim.py MODEL --data TEXT --text OTHER --keep 40320,16384 --work runs/trim

TEXT says which ids stay. Models are measured on the same bytes of OTHER, another text; tokens are compared on the part
of TEXT that was not counted.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from compress.base.progress import say
from compress.base.units import format_bytes, format_count
from compress.data import INDEX, DataConfig, prepare
from compress.evaluate import EvalConfig, compare_speed, evaluate_model
from compress.prune import TrimConfig, trim

_ROWS, _ROW_TOKENS = 32, 128
_SPEED = EvalConfig(speed_batches=[], speed_repeats=3, speed_decode_tokens=16)


def main() -> None:
    """Trim, measure, print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--keep", default="")
    parser.add_argument("--work", type=Path, required=True)
    asked = parser.parse_args()
    folders = {"whole": Path(asked.model), "used ids": asked.work / "used"}
    sizes: list[int | None] = [None, *map(int, filter(None, asked.keep.split(",")))]
    for size in sizes:
        out = asked.work / (str(size) if size else "used")
        folders[f"{size:,} ids" if size else "used ids"] = out
        if not out.is_dir():
            say(trim(asked.model, out, TrimConfig(data=asked.data, keep_tokens=size)).describe())
    store = asked.work / "store"
    if not (store / INDEX).is_file():
        prepare(DataConfig(dataset=asked.text, seq_len=_ROW_TOKENS, heldout_sequences=_ROWS), asked.model, store)
    speeds = compare_speed(folders, _SPEED)
    cells = {
        name: _measured(folder, store, asked.text, folders["whole"], speeds[name]) for name, folder in folders.items()
    }
    sys.stdout.write(f"| | {' | '.join(cells)} |\n|---|{'---|' * len(cells)}\n")
    for row in cells["whole"]:
        sys.stdout.write(f"| {row} | {' | '.join(found[row] for found in cells.values())} |\n")


def _measured(folder: Path, store: Path, text: str, whole: Path, speed: dict[str, Any]) -> dict[str, str]:
    record = folder / "trim.json"
    made: dict[str, Any] = json.loads(record.read_text()) if record.is_file() else {}
    config = EvalConfig(
        tasks=(), heldout_sequences=_ROWS, heldout_seq_len=_ROW_TOKENS, samples=0, responses=0, speed=False
    )
    found = evaluate_model(folder, config, text=store, text_tokenizer=whole)
    heldout, size = found["heldout"], (folder / "model.safetensors").stat().st_size
    seen = (made.get("text") or {}).get("heldout")
    return {
        "ids": f"{AutoTokenizer.from_pretrained(folder).vocab_size:,}",
        "parameters": format_count(found["params"]),
        "on disk": format_bytes(size),
        "decode tokens/s": f"{speed['decode_tokens_per_s']:.1f}",
        "documents in the same pieces": "–" if seen is None else f"{seen['same_pieces']:.1%}",
        "tokens, of the whole one's": "–" if seen is None else f"{seen['tokens_after'] / seen['tokens_before']:.4f}",
        "bits a byte": f"{heldout['bits_per_byte']:.4f}",
        "loss, nats a token": f"{heldout['loss_nats']:.4f}",
        "KL from the whole one, nats a byte": "–" if not made else f"{_divergence(whole, made, text):.5f}",
    }


@torch.no_grad()
def _divergence(whole: Path, made: dict[str, Any], text: str) -> float:
    """KL(trimmed || whole) a byte, on the whole one's tokens where all stay: the trimmed one's probabilities are the
    whole one's over their sum on the ids that stay, so that it is minus the logarithm of that sum."""
    model = AutoModelForCausalLM.from_pretrained(whole, dtype=torch.float32).eval()
    tokenizer, kept = AutoTokenizer.from_pretrained(whole), torch.tensor(made["kept_ids"])
    rows = [json.loads(line)["text"] for line in Path(text).read_text().splitlines()]
    total, size, read = 0.0, 0, 0
    for row in rows:
        ids = tokenizer(row, add_special_tokens=False).input_ids[:_ROW_TOKENS]
        if len(ids) < 2 or not torch.isin(torch.tensor(ids), kept).all():
            continue
        logits = model(torch.tensor([ids])).logits[0, :-1]
        total += float((logits.logsumexp(-1) - logits[:, kept].logsumexp(-1)).double().sum())
        size, read = size + len(tokenizer.decode(ids[1:]).encode()), read + 1
        if read == _ROWS:
            break
    return total / size


if __name__ == "__main__":
    main()
