"""Tiny vision-language models of real classes with their processors, images drawn by the test, and rows about them."""

import importlib
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from helpers import ROOT, byte_tokenizer
from PIL import Image, ImageDraw
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedTokenizerFast

SIDE, PATCH = 16, 4
"""Pixels a side of what a tower sees, and of a patch."""
COLOURS = ("red", "green", "blue", "yellow", "black", "white")
TOKENS = (
    "<image>", "<|im_start|>", "<|im_end|>", "<boi>", "<eoi>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
    "<|video_pad|>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>", "<img>", "</img>",
    "<IMG_CONTEXT>", "<row_1_col_1>", "[IMG]", "[IMG_BREAK]", "[IMG_END]",
)  # fmt: skip
IDS = {token: number for number, token in enumerate(TOKENS, 257)}
VOCABULARY = 320
_TEXT = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512,
    "pad_token_id": 0, "bos_token_id": 256, "eos_token_id": 256,
}  # fmt: skip
_TOWER = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": SIDE,
    "patch_size": PATCH,
}  # fmt: skip
_LLAMA = {"text_config": {"model_type": "llama", **_TEXT}}
_CLIP = {"vision_config": {"model_type": "clip_vision_model", "projection_dim": 16, **_TOWER}}
_QWEN_TEXT = {
    **_TEXT,
    "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0},
}
_QWEN_IDS = {
    "image_token_id": IDS["<|image_pad|>"],
    "video_token_id": IDS["<|video_pad|>"],
    "vision_start_token_id": IDS["<|vision_start|>"],
    "vision_end_token_id": IDS["<|vision_end|>"],
}
_QWEN_TOWER = {"depth": 2, "num_heads": 2, "patch_size": PATCH, "spatial_merge_size": 2, "temporal_patch_size": 2}
CLASSES: dict[str, dict[str, Any]] = {
    "llava": {**_CLIP, **_LLAMA, "image_token_index": IDS["<image>"], "image_seq_length": 16},
    "llava_next": {
        **_CLIP,
        **_LLAMA,
        "image_token_index": IDS["<image>"],
        "image_grid_pinpoints": [[SIDE, 2 * SIDE], [2 * SIDE, SIDE]],
    },
    "gemma3": {
        "vision_config": _TOWER,
        "text_config": {**_TEXT, "sliding_window": 24, "layer_types": ["sliding_attention", "full_attention"] * 2},
        "mm_tokens_per_image": 4,
        "boi_token_index": IDS["<boi>"],
        "eoi_token_index": IDS["<eoi>"],
        "image_token_index": IDS["<image>"],
    },
    "mistral3": {
        "vision_config": {"model_type": "pixtral", **_TOWER, "head_dim": 8},
        "text_config": {"model_type": "mistral", **_TEXT},
        "image_token_index": IDS["[IMG]"],
        "spatial_merge_size": 2,
        "vision_feature_layer": -1,
    },
    "idefics3": {"vision_config": _TOWER, **_LLAMA, "image_token_id": IDS["<image>"], "scale_factor": 2},
    "smolvlm": {"vision_config": _TOWER, **_LLAMA, "image_token_id": IDS["<image>"], "scale_factor": 2},
    "qwen2_vl": {
        "vision_config": {**_QWEN_TOWER, "embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2},
        "text_config": _QWEN_TEXT,
        **_QWEN_IDS,
    },
    "qwen2_5_vl": {
        "vision_config": {
            **_QWEN_TOWER,
            "hidden_size": 16,
            "intermediate_size": 32,
            "out_hidden_size": 32,
            "window_size": 16,
            "fullatt_block_indexes": [1],
        },
        "text_config": _QWEN_TEXT,
        **_QWEN_IDS,
    },
    "internvl": {
        "vision_config": {**_TOWER, "image_size": [SIDE, SIDE], "patch_size": [PATCH, PATCH]},
        "text_config": {"model_type": "qwen2", **_TEXT},
        "image_token_id": IDS["<IMG_CONTEXT>"],
        "image_seq_length": 4,
    },
    "paligemma": {
        "vision_config": {**_TOWER, "projection_dim": 32},
        "text_config": {"model_type": "gemma", **_TEXT},
        "image_token_index": IDS["<image>"],
        "projection_dim": 32,
        "hidden_size": 32,
    },
}
"""Fields of each type's config."""
_SIZE = {"height": SIDE, "width": SIDE}
PROCESSORS: dict[str, tuple[str, dict[str, Any], str, dict[str, Any], dict[str, str]]] = {
    "llava": (
        "clip.image_processing_pil_clip.CLIPImageProcessorPil",
        {"size": {"shortest_edge": SIDE}, "crop_size": _SIZE},
        "LlavaProcessor",
        {"patch_size": PATCH, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1},
        {"image_token": "<image>"},
    ),
    "llava_next": (
        "llava_next.image_processing_pil_llava_next.LlavaNextImageProcessorPil",
        {
            "size": {"shortest_edge": SIDE},
            "crop_size": _SIZE,
            "image_grid_pinpoints": CLASSES["llava_next"]["image_grid_pinpoints"],
        },
        "LlavaNextProcessor",
        {"patch_size": PATCH, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1},
        {"image_token": "<image>"},
    ),
    "gemma3": (
        "gemma3.image_processing_pil_gemma3.Gemma3ImageProcessorPil",
        {"size": _SIZE},
        "Gemma3Processor",
        {"image_seq_length": 4},
        {"image_token": "<image>", "boi_token": "<boi>", "eoi_token": "<eoi>"},
    ),
    "idefics3": (
        "idefics3.image_processing_pil_idefics3.Idefics3ImageProcessorPil",
        {"size": {"longest_edge": SIDE}, "max_image_size": {"longest_edge": SIDE}},
        "Idefics3Processor",
        {"image_seq_len": 4},
        {},
    ),
}
"""The image processor of each type, its options, the processor, its options, and the tokens that it looks for; of those
that need no more than PIL and, where that is installed, torchvision."""
if find_spec("torchvision") is not None:
    _QWEN = (
        "qwen2_vl.image_processing_qwen2_vl.Qwen2VLImageProcessor",
        {"patch_size": PATCH, "merge_size": 2, "min_pixels": 64, "max_pixels": 256},
    )
    PROCESSORS |= {
        "mistral3": (
            "pixtral.image_processing_pixtral.PixtralImageProcessor",
            {"size": {"longest_edge": SIDE}, "patch_size": {"height": 2 * PATCH, "width": 2 * PATCH}},
            "PixtralProcessor",
            {"patch_size": PATCH, "spatial_merge_size": 2},
            {},
        ),
        "qwen2_vl": (*_QWEN, "Qwen2VLProcessor", {}, {}),
        "qwen2_5_vl": (*_QWEN, "Qwen2_5_VLProcessor", {}, {}),
        "internvl": (
            "got_ocr2.image_processing_got_ocr2.GotOcr2ImageProcessor",
            {"size": _SIZE, "crop_to_patches": False},
            "InternVLProcessor",
            {"image_seq_length": 4},
            {
                "start_image_token": "<img>",
                "end_image_token": "</img>",
                "context_image_token": "<IMG_CONTEXT>",
                "video_token": "<|video_pad|>",
            },
        ),
    }
_VIDEO = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2VL", "internvl": "InternVL"}
_PLACES = {
    "gemma3": "<boi>",
    "mistral3": "[IMG]",
    "internvl": "<IMG_CONTEXT>",
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl"), "<|vision_start|><|image_pad|><|vision_end|>"),
}
"""What a chat template writes where an image is, beside `<image>`."""


def save_vlm(folder: Path, model_type: str, *, seed: int = 0, **changes: Any) -> Path:
    """Save a random vision-language model (fp32) with its processor, if it needs no more than PIL, or its tokenizer."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(model_type, **{**CLASSES[model_type], **changes})
    model = AutoModelForImageTextToText.from_config(config).float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn_like(parameter)
            if "norm" in name:
                parameter.add_(0.1 * noise)
            else:
                parameter.copy_(0.15 * noise)
    model.save_pretrained(folder)
    if model_type in PROCESSORS:
        make_processor(model_type).save_pretrained(folder)
    else:
        make_tokenizer().save_pretrained(folder)
    return folder


def make_tokenizer(named: dict[str, str] | None = None) -> Any:
    """A byte tokenizer with the special tokens of all classes, some of them under names that a processor looks for."""
    backend = byte_tokenizer().backend_tokenizer
    backend.add_special_tokens(list(TOKENS))
    ends: Any = {"bos_token": "<eos>", "eos_token": "<eos>", "pad_token": "<eos>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **ends, extra_special_tokens=named or {})


def make_processor(model_type: str) -> Any:
    """The processor of a type; its chat template writes ChatML."""
    where, options, name, more, tokens = PROCESSORS[model_type]
    module, _, class_name = where.rpartition(".")
    images = getattr(importlib.import_module(f"transformers.models.{module}"), class_name)(**options)
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% for part in m.content %}"
        f"{{% if part.type == 'image' %}}{{{{ '{_PLACES.get(model_type, '<image>')}' }}}}"
        "{% else %}{{ part.text }}{% endif %}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    parts = {"image_processor": images, "tokenizer": make_tokenizer(tokens), "chat_template": template, **more}
    if model_type in _VIDEO:
        parts["video_processor"] = getattr(transformers, f"{_VIDEO[model_type]}VideoProcessor")()
    return getattr(transformers, name)(**parts)


def image_inputs(model_type: str, rows: int = 2) -> dict[str, torch.Tensor]:
    """Inputs of a model: text around an image of noise, written by hand as its own documentation has it."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 256, (rows, 30), generator=generator)
    pixels = torch.randn(rows, 3, SIDE, SIDE, generator=generator)
    more: dict[str, torch.Tensor] = {"pixel_values": pixels}
    first, count, place = 6, 4, CLASSES[model_type].get("image_token_id", CLASSES[model_type].get("image_token_index"))
    if model_type in ("llava", "paligemma"):
        count = 16
    elif model_type == "llava_next":  # the whole image and two parts beside each other, with an end of each line
        count, sizes = 16 + 4 * (8 + 1), torch.tensor([[SIDE, 2 * SIDE]] * rows)
        more = {"pixel_values": torch.randn(rows, 3, 3, SIDE, SIDE, generator=generator), "image_sizes": sizes}
    elif model_type == "mistral3":
        more["image_sizes"] = torch.tensor([[SIDE, SIDE]] * rows)
    elif model_type in ("idefics3", "smolvlm"):
        more = {"pixel_values": pixels[:, None], "pixel_attention_mask": torch.ones(rows, 1, SIDE, SIDE).bool()}
    elif model_type.startswith("qwen2"):
        more = {
            "pixel_values": torch.randn(rows * 16, 3 * 2 * PATCH * PATCH, generator=generator),
            "image_grid_thw": torch.tensor([[1, 4, 4]] * rows),
        }
    ids = torch.cat([ids[:, :first], torch.full((rows, count), place), ids[:, first:]], dim=1)
    types = (ids == place).long()
    if model_type.startswith("qwen2"):
        more["mm_token_type_ids"] = types
    if model_type == "gemma3":
        more["token_type_ids"] = types
    return {"input_ids": ids, **more}


def draw(number: int, side: int = 24) -> Image.Image:
    """An image that differs from others in its colour and in where its mark is."""
    image = Image.new("RGB", (side, side), COLOURS[number % len(COLOURS)])
    place = 3 * number % (side - 6)
    ImageDraw.Draw(image).rectangle((place, place, place + 5, place + 3), fill=COLOURS[(number + 1) % len(COLOURS)])
    return image


def sentences(count: int) -> list[str]:
    """Sentences of this repository's pages, one each."""
    pages = (path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md")))
    found = (" ".join(part.split()) for page in pages for part in page.split(". "))
    return [part for part in found if part.isascii() and part.isprintable() and 30 <= len(part) <= 90][:count]


def write_prose(path: Path, count: int = 200) -> Path:
    """Such sentences, a document a line."""
    path.write_text("".join(f"{sentence}.\n" for sentence in sentences(count)))
    return path


def write_rows(folder: Path, count: int = 40) -> Path:
    """Conversations about drawn images beside the file, a line each: what colour is it, and how does a sentence end?"""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, sentence in enumerate(sentences(count)):
        draw(number).save(folder / f"{number}.png")
        words = sentence.split()
        half = len(words) // 2
        asked = [{"type": "image"}, {"type": "text", "text": f"Its colour? And go on: {' '.join(words[:half])}"}]
        answer = [{"type": "text", "text": f"{COLOURS[number % len(COLOURS)]}. {' '.join(words[half:])}"}]
        messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        lines.append(json.dumps({"images": [f"{number}.png"], "messages": messages}) + "\n")
    assert len(lines) == count
    (folder / "rows.jsonl").write_text("".join(lines))
    return folder / "rows.jsonl"
