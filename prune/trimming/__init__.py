"""Trimming: the ids of a vocabulary that a text never uses are dropped, with their rows of embedding and head.

`config` says what can be asked. `definition` is the tokenizer as data, `pieces` what its tokens need of one another,
`choice` which of them stay; `plan` is the model's side, `text` counts tokens and compares both tokenizers, `check` both
models. `step` writes the trimmed model and `record` says what was done.
"""
