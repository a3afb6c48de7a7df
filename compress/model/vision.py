"""Processors of vision-language models, and what they make of text and images for a model beside token ids."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress.base.disk import sha256_file, sha256_json
from compress.base.errors import InputError, UsageError, reason_of
from compress.base.packages import require_package
from compress.model.load import why_not_loaded
from compress.model.remote_code import trusted

Inputs = dict[str, Tensor]
"""What a model is given beside ids, by the name that it has in its `forward`."""
_SAMPLE_TEXT = "What is on it? Noise, in three colours."
_FILES = ("preprocessor_config.json", "processor_config.json")
_NOT_OF_THE_MODEL = ("input_ids", "attention_mask", "offset_mapping", "text_replacement_offsets", "labels")


def load_processor(folder: Path) -> Any:
    """The processor of a vision-language model's folder.

    Raises:
        InputError: there is none, or it cannot be used.
        UsageError: it needs a package that is not installed.
    """
    require_package("PIL", "An image", "vision")
    from transformers import AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(folder, trust_remote_code=trusted())
    except ImportError as error:
        raise UsageError(
            f"The processor of {folder} needs a package that is not installed ({reason_of(error)}): "
            "`pip install 'compress[vision]'`."
        ) from error
    except Exception as error:
        raise _no_processor(folder, why_not_loaded(error)) from error
    if not hasattr(processor, "image_processor"):
        raise _no_processor(folder, "it has no preprocessor_config.json or processor_config.json")
    return processor


def processor_sha256(folder: Path) -> str:
    """One hash for the files of a folder that say how its processor makes pixels."""
    found = [folder / name for name in _FILES if (folder / name).is_file()]
    return sha256_json({path.name: sha256_file(path) for path in found})


def _no_processor(folder: Path, why: str) -> InputError:
    return InputError(
        f"{folder} has no processor that makes pixels of images ({why}). Copy preprocessor_config.json, "
        "processor_config.json and the chat template of the original model into it."
    )


def processed(processor: Any, text: str, images: Sequence[Any], **options: Any) -> dict[str, Any]:
    """What a processor makes of one text and its images (PIL), as tensors of one row."""
    options |= {"return_tensors": "pt", "padding": False}
    return dict(processor(text=[text], images=[list(images)], **options))


def model_inputs(found: Mapping[str, Any]) -> Inputs:
    """What of it a model is to be given beside ids. No padding is in it, and so no attention mask needed."""
    return {name: value for name, value in found.items() if name not in _NOT_OF_THE_MODEL}


def collated(rows: Sequence[Inputs]) -> Inputs:
    """Inputs of several rows as one: those of each are padded with zeros at the end of every dimension but the first,
    along which they follow each other. What there is for each token is as long as the row already."""
    return {name: _joined([row[name] for row in rows]) for name in rows[0]}


def _joined(parts: Sequence[Tensor]) -> Tensor:
    shape = [max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True)]
    joined, first = parts[0].new_zeros(sum(map(len, parts)), *shape), 0
    for part in parts:
        joined[(slice(first, first + len(part)), *map(slice, part.shape[1:]))] = part
        first += len(part)
    return joined


def to_model(inputs: Inputs, device: torch.device, dtype: torch.dtype) -> Inputs:
    """The same on a model's device, pixels in its dtype."""
    return {name: value.to(device, dtype if value.is_floating_point() else None) for name, value in inputs.items()}


def sample_inputs(folder: Path) -> Inputs:
    """A text with an image of noise, always the same, as a model's inputs, `input_ids` [1, S] and all others.

    Raises:
        InputError, UsageError: as `load_processor`; or the processor makes nothing of it.
    """
    processor = load_processor(folder)
    from PIL import Image

    noise = torch.randint(0, 256, (64, 64, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    try:
        found = processed(processor, f"{processor.image_token}{_SAMPLE_TEXT}", [Image.fromarray(noise.numpy())])
    except Exception as error:
        raise InputError(f"The processor of {folder} makes nothing of an image ({reason_of(error)}).") from error
    return {"input_ids": found["input_ids"], **model_inputs(found)}
