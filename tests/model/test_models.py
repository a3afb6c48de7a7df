"""What belongs to a model folder besides its config and weights."""

from pathlib import Path

from compress.base.disk import sha256_tree
from compress.model.files import copy_side_files

BELONGS = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt", "merges.txt",
    "special_tokens_map.json", "added_tokens.json", "spiece.model", "source.spm", "qwen.tiktoken",
    "chat_template.jinja", "chat_template.json", "additional_chat_templates/tool_use.jinja", "generation_config.json",
    "preprocessor_config.json", "processor_config.json", "LICENSE", "LICENSE.txt", "NOTICE", "USE_POLICY.md",
)  # fmt: skip
OTHERS = (
    "config.json", "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "README.md", "prune.json",
    "distill.json", "modeling_x.py", "tokenization_x.py", "tokenizer_x.py", "vocab.pt", "merges.bin",
    "tokenizer_cache/part.json",
)  # fmt: skip


def test_side_files_are_copied_byte_for_byte_and_nothing_else(tmp_path: Path) -> None:
    folder, out = tmp_path / "model", tmp_path / "out"
    for name in (*BELONGS, *OTHERS):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"the model's {name}")
    out.mkdir()
    (out / "generation_config.json").write_text("what the library wrote")
    copy_side_files(folder, out)
    copied = sha256_tree(out)
    assert copied == {name: sha for name, sha in sha256_tree(folder).items() if name in BELONGS}
    assert set(copied) == set(BELONGS)
