"""What loading a student and loading a teacher have in common."""

from pathlib import Path
from typing import Any

import torch

from compress.base.errors import UsageError, reason_of
from compress.base.progress import say
from compress.distill.config import DistillConfig
from compress.distill.resources.attention import DOCUMENTS, choose, parts_documents, without_mask
from compress.distill.resources.auto import Here
from compress.distill.rows.documents import check_isolation
from compress.model.load import load_model
from compress.model.parts import check_output_head

_GRAPHS = 64
_TRACED_TOKENS = 8


def load_checked(
    config: DistillConfig, folder: Path, here: Here, *, dtype: torch.dtype, device: torch.device, **kwargs: Any
) -> Any:
    """A model of a run, found to give its logits by its head and, with `document_mask`, to keep documents apart.

    Further `kwargs` go to `from_pretrained`.

    Raises:
        InputError: the folder holds no model that can be loaded.
        CompressError: its logits are no product of hidden states and head that we know.
        UsageError: it cannot keep documents apart.
    """
    model = load_model(folder, dtype=dtype, device=device, attn_implementation=here.attention, **kwargs)
    own = None
    if here.attention is None:
        own = without_mask(model, here.seq_len, documents=here.documents_apart, compiled=here.compiled, bf16=here.bf16)
    # Kernels of 16 bits get them from autocast in training too; all else is checked as exactly as it can be.
    flash = here.attention == "flash_attention_2"
    narrow = here.bf16 and (flash or own == DOCUMENTS)
    waits = flash and device.type == "cpu"  # to be split over processes: on the host until then, where no kernel is
    if waits:
        model.set_attn_implementation("sdpa")
    with torch.autocast(device.type, torch.bfloat16, enabled=narrow):
        check_output_head(model, str(folder))
        if own is not None:
            choose(model, own, here.seq_len)
        if here.documents_apart:
            _keep_documents_apart(model, str(folder))
    if waits:
        model.set_attn_implementation(here.attention)
    return model


def _keep_documents_apart(model: Any, name: str) -> None:
    """Raises as `check_isolation`, once attention of our own has given way to SDPA with a mask."""
    if parts_documents(model):
        try:
            return check_isolation(model, name)
        except UsageError:  # a model may not tell its attention what it was told of documents
            model.set_attn_implementation("sdpa")
            say(f"{type(model).__name__} keeps documents apart with a mask: its attention is not told of them.")
    return check_isolation(model, name)


def recompute_activations(model: Any) -> None:
    """Turn on gradient checkpointing, under the name this version of transformers has for it."""
    options = {"use_reentrant": False}
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)


def compile_backbone(model: Any, *, asked: bool, backend: str = "inductor") -> None:
    """Have the model's decoder compiled at its first call, as one graph for each shape of its inputs.

    A graph is made for training and one for held-out rows, and for a smaller last micro-batch one more of each; where
    documents are kept apart, one for each power of two of their number. A model that makes no one graph is run as it
    is, and that is said, unless compiling was `asked` for: then its first call raises what torch says.
    """
    if not asked and (fault := _why_no_graph(model)) is not None:
        say(f"{type(model).__name__} is not compiled (compile: auto): {fault}.")
        return
    dynamo: Any = torch._dynamo.config  # its limit is for both models together, and fails a graph that is to be whole
    dynamo.recompile_limit = max(dynamo.recompile_limit, _GRAPHS)
    model.base_model.compile(fullgraph=True, dynamic=False, backend=backend)


@torch.no_grad()
def _why_no_graph(model: Any) -> str | None:
    """What breaks the graph of a model, traced on a few tokens without being compiled; None where nothing does."""
    ids = torch.arange(2 * _TRACED_TOKENS, device=next(model.parameters()).device).view(2, -1)
    traced: Any = torch.compile(model.base_model, fullgraph=True, dynamic=False, backend="eager")
    try:
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=parts_documents(model)):
            traced(input_ids=ids % model.get_input_embeddings().num_embeddings, use_cache=False)
    except Exception as error:  # whatever the tracer or a model's own code raises
        return reason_of(str(error).partition("\n")[0]) or type(error).__name__
    finally:
        torch._dynamo.reset()
    return None
