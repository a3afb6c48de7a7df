"""Divergences as their papers write them, for autograd in float64."""

from torch import Tensor

from compress.distill.config import DivergenceConfig

ALL = [
    *(DivergenceConfig(name=name) for name in ("forward_kl", "cross_entropy", "reverse_kl", "jensen_shannon")),  # type: ignore[arg-type]
    *(DivergenceConfig(name="symmetric_kl", lambda_=x) for x in (0.0, 0.3, 1.0)),
    *(DivergenceConfig(name="generalised_js", beta=x) for x in (0.0, 0.2, 0.9, 1.0)),
    DivergenceConfig(name="total_variation"),
    *(DivergenceConfig(name="skew_forward_kl", s=x) for x in (0.0, 0.1, 0.7)),
    *(DivergenceConfig(name="skew_reverse_kl", s=x) for x in (0.0, 0.1, 0.7)),
    DivergenceConfig(name="logit_mse"),
    DivergenceConfig(name="uld"),
]


def name_of(config: DivergenceConfig) -> str:
    """For a test's name."""
    return f"{config.name}-{config.parameter:g}"


def kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    return (log_a.exp() * (log_a - log_b)).sum(-1)


def mixture(log_a: Tensor, log_b: Tensor, share: float) -> Tensor:
    """log(share a + (1 - share) b)."""
    return (share * log_a.exp() + (1 - share) * log_b.exp()).log()


def divergence_by_definition(config: DivergenceConfig, z_p: Tensor, z_q: Tensor) -> Tensor:
    """Of each row of tempered logits [N, V], teacher's and student's."""
    log_p, log_q = z_p.log_softmax(-1), z_q.log_softmax(-1)
    p, q, x = log_p.exp(), log_q.exp(), config.parameter
    if config.name == "generalised_js" and x in (0, 1):
        return kl(log_p, log_q) if x == 0 else kl(log_q, log_p)
    if config.name in ("generalised_js", "jensen_shannon"):
        x = 0.5 if config.name == "jensen_shannon" else x
        log_m = mixture(log_p, log_q, x)
        return x * kl(log_p, log_m) + (1 - x) * kl(log_q, log_m)
    found: Tensor = {
        "forward_kl": lambda: kl(log_p, log_q),
        "cross_entropy": lambda: -(p * log_q).sum(-1),
        "reverse_kl": lambda: kl(log_q, log_p),
        "symmetric_kl": lambda: x * kl(log_p, log_q) + (1 - x) * kl(log_q, log_p),
        "total_variation": lambda: (p - q).abs().sum(-1) / 2,
        "skew_forward_kl": lambda: kl(log_p, mixture(log_p, log_q, x)),
        "skew_reverse_kl": lambda: kl(log_q, mixture(log_q, log_p, x)),
        "logit_mse": lambda: (z_q - z_q.mean(-1, keepdim=True) - z_p + z_p.mean(-1, keepdim=True)).square().mean(-1),
        "uld": lambda: (p.sort(-1).values - q.sort(-1).values).abs().sum(-1),
    }[config.name]()
    return found
