"""Which layers stay: by name, by measure, by candidates for a trial.

`spec` reads a SPEC, `kinds` and `mix` say of which types layers are and what a cut does to their mixture. `ranking`
chooses by a measure (`influence`, `ablation`, `saliency`) on a text (`calibration`); `candidates` names the cuts that
are healed before one is chosen.
"""
