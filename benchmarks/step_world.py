"""What the step benchmark trains: models with random weights, a tokenizer, and a token store of random words."""

import dataclasses
import random
from pathlib import Path
from typing import Any

import torch


@dataclasses.dataclass(frozen=True)
class World:
    """A teacher, a student of fewer layers, and a batch. Both models are Llamas with tied embeddings."""

    name: str
    vocabulary: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    teacher_layers: int
    student_layers: int
    rows: int
    """Sequences a step."""
    seq_len: int

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.teacher_layers} -> {self.student_layers} layers, hidden {self.hidden}, "
            f"V={self.vocabulary}, batch {self.rows} x {self.seq_len}"
        )

    @property
    def batch_tokens(self) -> int:
        """Tokens a step."""
        return self.rows * self.seq_len

    def config(self, layers: int) -> Any:
        """The Hugging Face config of a model of `layers` layers."""
        from transformers import LlamaConfig

        return LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            max_position_embeddings=max(2048, self.seq_len),
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=0,
        )

    def build(self, folder: Path, *, num_rows: int) -> None:
        """Write `folder`/teacher, /student and /data (`num_rows` sequences or more)."""
        for seed, (name, layers) in enumerate({"teacher": self.teacher_layers, "student": self.student_layers}.items()):
            self._save_model(folder / name, layers, seed)
        self._save_store(folder / "data", folder / "teacher", num_rows)

    def _save_model(self, folder: Path, layers: int, seed: int) -> None:
        from transformers import AutoModelForCausalLM

        torch.manual_seed(seed)
        AutoModelForCausalLM.from_config(self.config(layers), dtype=torch.bfloat16).save_pretrained(folder)
        word_tokenizer(self.vocabulary).save_pretrained(folder)

    def _save_store(self, folder: Path, tokenizer: Path, num_rows: int) -> None:
        from compress.data import DataConfig, prepare

        text, draw = folder.with_suffix(".txt"), random.Random(0)
        documents = (
            " ".join(f"w{draw.randrange(1, self.vocabulary)}" for _ in range(self.seq_len)) for _ in range(num_rows)
        )
        text.write_text("\n".join(documents) + "\n")
        prepare(
            DataConfig(dataset=str(text), seq_len=self.seq_len, heldout_sequences=0), tokenizer=tokenizer, out=folder
        )


def word_tokenizer(vocabulary: int) -> Any:
    """Words w0, w1, ...: one token each, with w0 as the end of a document."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {f"w{number}": number for number in range(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="w0", bos_token="w0", pad_token="w0")


WORLDS = {
    "cpu": (
        World("small", 32000, 512, 1376, 8, 8, 8, 4, rows=4, seq_len=512),
        World("large vocabulary", 128256, 512, 1376, 8, 8, 8, 4, rows=4, seq_len=512),
    ),
    "cuda": (World("Llama-3.2-1B's shape", 128256, 2048, 8192, 32, 8, 16, 8, rows=4, seq_len=2048),),
    "smoke": (World("smoke", 500, 32, 64, 4, 4, 2, 1, rows=2, seq_len=32),),
}
