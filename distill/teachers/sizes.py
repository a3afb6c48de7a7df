"""How large a cache of a teacher will be."""

from typing import Any, NamedTuple

from compress.distill.teachers.config import CacheConfig
from compress.distill.teachers.row_files import ENTRY
from compress.model.parts import count_parameters, empty_model


class CacheSize(NamedTuple):
    """Bytes of a cache."""

    rows: int
    head: int

    @property
    def total(self) -> int:
        """Of all files but the index."""
        return self.rows + self.head


def cache_size(config: CacheConfig, teacher: Any, *, num_rows: int, seq_len: int, bf16: bool) -> CacheSize:
    """Of the cache of a teacher, by its config, on `num_rows` rows, held-out ones among them."""
    value = 2 if bf16 else 4
    row = seq_len * teacher.get_text_config().hidden_size * value
    return CacheSize(
        rows=num_rows * (row + ENTRY.itemsize),
        head=value * count_parameters(empty_model(teacher).get_output_embeddings()),
    )
