"""A model folder and what a causal LM is made of: found, checked, loaded, taken apart, costed.

`files` finds and checks folders without torch, `load` loads what is in them, `remote_code` says whether their code may
run. `parts` takes a causal LM apart, `costs` and `probe` say what a token costs it. `tokenizer` and `vocabulary` say
which models and stored texts speak of the same tokens.
"""
