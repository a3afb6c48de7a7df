"""Every size between: blocks of a teacher put back where they were dropped from its healed student (Boomerang
distillation, Kangaslahti et al. 2025, arXiv 2510.05064).

`config` says what can be asked; `plan` what is known before anything is read; `order` measures which blocks go back
first; `blocks` makes models of two, on disk and in memory; `step` writes them and `record` says what was done.
"""
