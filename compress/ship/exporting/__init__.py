"""A model in another format: fewer bits, another dtype, or a GGUF file.

`config` says what can be asked; `preflight` what would refuse it; `quantized`, `cast` and `gguf_file` (with
`gguf_kinds` and `gguf_tokenizer`) write the formats; `readback` loads what was written and compares it; `card` writes
the README.md; `step` does it all, `record` says what was done, and `push` puts a folder on the hub.
"""
