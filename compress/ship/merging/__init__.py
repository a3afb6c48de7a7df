"""Several models of one architecture merged into one.

`config` says what can be asked; `plan` looks whether the models go together; `methods` is the arithmetic, tensor by
tensor; `step` reads, merges and writes, a tensor of each model at a time.
"""
