"""Batches that do not fit the memory are halved until they do.

Products of other shapes may round otherwise: the results are those of the whole batch but for their last bits.
"""

import gc
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from accelerate.utils.memory import should_reduce_batch_size

from compress.base.errors import InputError
from compress.base.progress import say

_NO_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "storage size calculation overflowed")
"""What torch says, of a device and of the host, beside what accelerate knows."""
Item = TypeVar("Item")
Result = TypeVar("Result")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device's or the machine's memory ran out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, Exception) and (
        should_reduce_batch_size(error) or any(words in str(error).lower() for words in _NO_MEMORY)
    )


class Halving:
    """Runs batches, in halves where they have proved too large; it remembers how large that was."""

    def __init__(self, free: Callable[[], None], section: str = "eval") -> None:
        self._free, self._section = free, section  # the latter of a recipe, or of --set: which options help
        self._limit: int | None = None

    def run(
        self,
        items: Sequence[Item],
        compute: Callable[[Sequence[Item]], list[Result]],
        tokens: Callable[[Sequence[Item]], int],
    ) -> list[Result]:
        """`compute(items)`, or its results for parts of `items` one after another; `tokens` is a batch's size.

        Raises:
            InputError: one item alone does not fit.
        """
        size = tokens(items)
        if len(items) == 1 or self._limit is None or size <= self._limit:
            try:
                return compute(items)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if len(items) == 1:
                    raise InputError(
                        f"The memory does not hold the model and a sequence of {size} tokens. Choose a smaller model, "
                        f"--set {self._section}.dtype=bfloat16, a device with more memory, or shorter prompts or rows."
                    ) from error
            self._recover(size)
        middle = len(items) // 2
        return self.run(items[:middle], compute, tokens) + self.run(items[middle:], compute, tokens)

    def _recover(self, size: int) -> None:
        self._limit = size // 2
        self._free()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        option = f"{self._section}.batch_tokens"
        say(f"The memory does not hold a batch of {size} tokens: going on with {self._limit} ({option}).")
