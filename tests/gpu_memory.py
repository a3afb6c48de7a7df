"""The planner's memory of common distillations, as docs/gpus.md has it; `python tests/gpu_memory.py` writes it."""

import sys
from pathlib import Path
from typing import Any

from transformers import LlamaConfig

from compress.distill import DistillConfig, plan_distill
from compress.distill.students.config import LoraConfig

PAGE = Path(__file__).resolve().parents[1] / "docs" / "gpus.md"
BEGIN, END = "<!-- memory: tests/gpu_memory.py -->\n", "<!-- /memory -->\n"
SEQ_LEN = 2048
RESERVE = 0.92
"""Share of a GPU's memory that tensors can have: the rest is CUDA's own, and gaps between tensors."""
SIZES = (16, 24, 40, 48, 80, 141)
_LESS: dict[str, Any] = {"gradient_checkpointing": True, "micro_batch_rows": 1}
WAYS: dict[str, tuple[dict[str, Any], int]] = {
    "as it is": ({}, 1),
    "recomputed": (_LESS, 1),
    "and int8 teacher": ({**_LESS, "teacher_precision": "int8"}, 1),
    "and 8-bit AdamW": ({**_LESS, "teacher_precision": "int8", "optimizer": "adamw8bit"}, 1),
    "recomputed, LoRA": ({**_LESS, "lora": LoraConfig()}, 1),
    "QLoRA, int8 teacher": ({**_LESS, "lora": LoraConfig(base_precision="nf4"), "teacher_precision": "int8"}, 1),
    "recomputed, FSDP2 on 8": ({**_LESS, "shard": "both"}, 8),
}
LLAMAS: dict[str, tuple[dict[str, Any], int, int]] = {
    "Llama 3.2 1B, 16 to 8 layers": (
        {"hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 32, "tie_word_embeddings": True}, 16, 8
    ),
    "Llama 3.2 3B, 28 to 14": (
        {"hidden_size": 3072, "intermediate_size": 8192, "num_attention_heads": 24, "tie_word_embeddings": True}, 28, 14
    ),
    "Llama 2 7B, 32 to 16": (
        {
            "hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "num_key_value_heads": 32,
            "vocab_size": 32000,
        }, 32, 16
    ),
    "Llama 3.1 8B, 32 to 16": ({"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32}, 32, 16),
}  # fmt: skip


def gib(name: str, way: str) -> float:
    """GiB that the planner gives one process."""
    fields, deep, shallow = LLAMAS[name]
    teacher, student = (
        LlamaConfig(**{"vocab_size": 128256, "num_key_value_heads": 8, **fields}, num_hidden_layers=layers)
        for layers in (deep, shallow)
    )
    options, processes = WAYS[way]
    config = DistillConfig(precision="bf16", **options)
    plan = plan_distill(config, student=student, teacher=teacher, num_rows=1000, seq_len=SEQ_LEN, processes=processes)
    return plan.total_bytes / 2**30


def cell(size: float) -> str:
    """`34.8 (40)`: GiB, and the smallest GPU that holds them."""
    holds = next((gpu for gpu in SIZES if gpu * RESERVE >= size), None)
    return f"{size:.1f} ({holds})" if holds else f"{size:.1f}"


def row(name: str) -> str:
    """A line of the table."""
    return f"| {name} | " + " | ".join(cell(gib(name, way)) for way in WAYS) + " |"


def lines(page: str) -> dict[str, str]:
    """The lines of the table in a page, by model."""
    table = page.split(BEGIN)[1].split(END)[0].splitlines()[2:]
    return {line.split("|")[1].strip(): line for line in table}


def main() -> None:
    """Write the table into the page."""
    head = ["| | " + " | ".join(WAYS) + " |", "|---" * (1 + len(WAYS)) + "|"]
    table = "\n".join([*head, *map(row, LLAMAS)]) + "\n"
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    PAGE.write_text(before + BEGIN + table + END + rest.split(END)[1], encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
