"""Our backend in lm-eval's table of models: importing this is enough for `simple_evaluate(model="compress", ...)`."""

from typing import Any, Literal

import torch
from lm_eval.api.registry import register_model

from compress.base.errors import UsageError
from compress.evaluate.config import EvalConfig
from compress.evaluate.harness.scorer import Scorer
from compress.inference.readout import load_checkpoint


@register_model("compress")
class RegisteredScorer(Scorer):
    """`Scorer` as lm-eval makes its models: from `--model_args`, `--device` and `--batch_size`."""

    def __init__(
        self,
        pretrained: str,
        *,
        dtype: Literal["auto", "float32", "bfloat16"] = "auto",
        device: str | None = None,
        batch_tokens: int = EvalConfig().batch_tokens,
        max_length: int | None = None,
        batch_size: Any = None,
        max_batch_size: Any = None,
        **unknown: Any,
    ) -> None:
        """`batch_size` and `max_batch_size` have no effect: batches are filled to `batch_tokens`.

        Raises:
            UsageError: an argument that this backend does not have.
            InputError: the model cannot be used (see `load_checkpoint`).
        """
        if unknown:
            raise UsageError(
                f"--model compress has no argument {', '.join(sorted(unknown))}; it has pretrained, dtype (auto, "
                "float32, bfloat16), device, batch_tokens and max_length."
            )
        if dtype not in ("auto", "float32", "bfloat16"):
            raise UsageError(f"dtype={dtype} is not one of auto, float32, bfloat16.")
        if device is not None and device.startswith("cuda") and not torch.cuda.is_available():
            device = None  # lm-eval asks for cuda:0 where the user asked for nothing
        config = EvalConfig(dtype=dtype, device=device, batch_tokens=int(batch_tokens))
        super().__init__(load_checkpoint(pretrained, dtype=config.dtype, device=config.device), config.batch_tokens)
        if max_length is not None:
            self._max_length = max_length
        # What lm-eval writes of a model into its results.
        self.pretrained, self.revision = pretrained, "main"
