"""Objectives by name, which objectives.py times, and parts of a student: options of `compress distill` that recovery.py
heals with.
"""

from typing import Any

FADING = {"from": 1.0, "to": 0.0, "over": 0.5}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "paper": {"alpha": 0.8},
    "kl": {"alpha": 1.0},
    "kl-wsd": {"alpha": 1.0, "schedule": "wsd"},
    "kl-muon": {"alpha": 1.0, "optimizer": "muon"},
    "ce": {"alpha": 0.0},
    "half-ce": {"alpha": 0.5},
    "temperature-2": {"alpha": 1.0, "temperature": 2.0},
    "reverse-kl": {"alpha": 1.0, "divergence": "reverse_kl"},
    "symmetric-kl": {"alpha": 1.0, "divergence": "symmetric_kl"},
    "jensen-shannon": {"alpha": 1.0, "divergence": "jensen_shannon"},
    "gkd-0.1": {"alpha": 1.0, "divergence": {"name": "generalised_js", "beta": 0.1}},
    "total-variation": {"alpha": 1.0, "divergence": "total_variation"},
    "skew-kl": {"alpha": 1.0, "divergence": "skew_forward_kl"},
    "skew-reverse-kl": {"alpha": 1.0, "divergence": "skew_reverse_kl"},
    "logit-mse": {"alpha": 1.0, "divergence": "logit_mse"},
    "uld": {"alpha": 1.0, "divergence": "uld"},
    "self-correct": {"alpha": 1.0, "self_correct": 0.2},
    "hidden": {"alpha": 1.0, "weights": {"hidden": 1.0}},
    "hidden-fading": {"alpha": 1.0, "weights": {"hidden": FADING}},
    "hidden-next": {"alpha": 1.0, "weights": {"hidden": FADING}, "hidden": {"pairs": "next"}},
    "hidden-last": {"alpha": 1.0, "weights": {"hidden": 1.0}, "hidden": {"pairs": "last"}},
    "hidden-mse": {"alpha": 1.0, "weights": {"hidden": FADING}, "hidden": {"distance": "mse"}},
    "similarity": {"alpha": 1.0, "weights": {"similarity": 1.0}},
    "level": {"alpha": 0.5, "balance": "level"},
}
"""Beside tokens, batch, rate and seed; `paper` is the seed paper's alpha under AdamW and a cosine."""
PARTS: dict[str, dict[str, Any]] = {
    "seams": {"alpha": 1.0, "train": "seams"},
    "last-4": {"alpha": 1.0, "train": "last:4"},
    "lora": {"alpha": 1.0, "lora": {"r": 16, "alpha": 32.0}},
}
"""The objective `kl` for a part of the student, which students.py times."""
