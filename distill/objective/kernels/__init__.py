"""Compiled passes over tiles of logits; `compress.distill.objective.tiles` chooses between them and plain torch."""

KERNELS = {
    "cross_entropy": 0,
    "forward_kl": 1,
    "reverse_kl": 2,
    "symmetric_kl": 2,
    "generalised_js": 3,
    "total_variation": 4,
    "skew_forward_kl": 5,
    "skew_reverse_kl": 6,
}
"""The divergences that they have, as `divergence_of` names them, by their number there; reverse KL is symmetric KL at
lambda 0, which is the parameter of one that has none."""
