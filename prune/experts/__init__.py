"""Fewer experts in mixture-of-experts layers, by REAP: router-weighted expert activation pruning (Lasby et al. 2025,
arXiv 2510.13999).

`count` says how many may stay, `reap` scores them on text and chooses, `weights` picks their tensors, and `masked` is
the teacher without those that go, which the student must equal.
"""
