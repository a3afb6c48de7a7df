"""Merges: each tensor is what a float64 reference says, the whole loads, and what does not go together is refused."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import run_cli, save_tiny_model
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from scipy.special import log_softmax
from transformers import AutoModelForCausalLM

from compress.base.disk import sha256_file
from compress.base.errors import InputError, UsageError
from compress.ship import MergeConfig, merge

Array = NDArray[np.float64]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and three branches of it, each trained otherwise; the third is stored in two files."""
    folder = tmp_path_factory.mktemp("merge")
    save_tiny_model(folder / "base", num_hidden_layers=2)
    for number, name in enumerate("abc"):
        branch(folder / "base", folder / name, seed=number + 1)
    sharded = AutoModelForCausalLM.from_pretrained(folder / "c")
    (folder / "c" / "model.safetensors").unlink()
    sharded.save_pretrained(folder / "c", max_shard_size="60KB")
    assert len(list((folder / "c").glob("*.safetensors"))) > 1
    return folder


def branch(base: Path, out: Path, seed: int) -> None:
    """Leave a model as a training of the base would: a few weights changed a lot, all a little, one tensor not."""
    model = AutoModelForCausalLM.from_pretrained(base)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "0.self_attn.o_proj" not in name:
                change = torch.randn(parameter.shape, generator=generator)
                parameter.add_(0.02 * change + 0.1 * change * (change > 1.5))
    model.save_pretrained(out)
    for path in base.glob("token*"):
        (out / path.name).write_bytes(path.read_bytes())


def weights_of(folder: Path) -> dict[str, Array]:
    return {
        name: value.double().numpy() for path in folder.glob("*.safetensors") for name, value in load_file(path).items()
    }


def linear(models: Sequence[Array], _: Array, weights: Array) -> Array:
    return sum(w * m for w, m in zip(weights, models, strict=True))  # type: ignore[return-value]


def slerp(models: Sequence[Array], _: Array, weights: Array) -> Array:
    """The point on the great circle, by its plane: the first axis is the first model, the second at a right angle."""
    a, b = (m.ravel() for m in models)
    norm = np.linalg.norm(a), np.linalg.norm(b)
    x = a / norm[0]
    y = b / norm[1] - (b / norm[1] @ x) * x
    angle = np.arctan2(np.linalg.norm(y), b / norm[1] @ x)
    t = weights[1]
    shares = np.sin((1 - t) * angle) / np.sin(angle), np.sin(t * angle) / np.sin(angle)
    return (shares[0] * a + shares[1] * b).reshape(models[0].shape)


def ties(density: float, scale: float = 1.0) -> Callable[..., Array]:
    def method(models: Sequence[Array], base: Array, weights: Array) -> Array:
        deltas = []
        for model in models:
            delta = (model - base).ravel()
            order = np.argsort(-np.abs(delta), kind="stable")
            delta[order[max(1, round(density * delta.size)) :]] = 0
            deltas.append(delta)
        out = base.ravel().copy()
        for i in range(out.size):  # parameter by parameter, as the paper's algorithm 1 has it
            values = np.array([delta[i] for delta in deltas])
            sign = np.sign(weights @ values)
            agree = (np.sign(values) == sign) & (values != 0)
            if agree.any():
                out[i] += scale * (weights[agree] @ values[agree]) / weights[agree].sum()
        return out.reshape(base.shape)

    return method


def important(density: float | None) -> Callable[..., Array]:
    def method(models: Sequence[Array], base: Array, weights: Array) -> Array:
        total, count = np.zeros_like(base), np.zeros_like(base)
        for weight, model in zip(weights, models, strict=True):
            p, q = log_softmax(model, -1), log_softmax(base, -1)
            score = np.abs(model - base) * (np.exp(p) * (p - q)).sum(-1, keepdims=True)
            if density is None:
                lower, median, upper = np.percentile(score, (25, 50, 75))
                least = median + 1.5 * (upper - lower)
            else:
                least = np.sort(score.ravel())[-max(1, round(density * score.size))]
            keep = (score >= least * (1 - 1e-9)) & (model != base)
            total, count = total + weight * keep * (model - base), count + weight * keep
        return base + np.where(count > 0, total / np.maximum(count, 1e-30), 0)

    return method


CASES: dict[str, tuple[str, dict[str, Any], Callable[..., Array]]] = {
    "linear": ("abc", {"weights": (1, 2, 5)}, linear),
    "slerp": ("ab", {"weights": (3, 1)}, slerp),
    "ties": ("abc", {}, ties(0.2)),
    "ties, weighed": ("abc", {"density": 0.5, "weights": (1, 2, 4), "scale": 0.7}, ties(0.5, 0.7)),
    "important": ("abc", {}, important(None)),
    "important, a share": ("abc", {"density": 0.3, "weights": (1, 2, 4)}, important(0.3)),
}


@pytest.mark.parametrize("case", CASES)
def test_each_tensor_is_what_float64_says(place: Path, tmp_path: Path, case: str) -> None:
    names, options, reference = CASES[case]
    method = case.partition(",")[0]
    based = {"base": str(place / "base")} if method in ("ties", "important") else {}
    folders = [place / name for name in names]
    record = merge(folders, tmp_path / "out", MergeConfig(method=method, **based, **options)).record  # type: ignore[arg-type]
    given, base, merged = [weights_of(f) for f in folders], weights_of(place / "base"), weights_of(tmp_path / "out")
    shares = np.array(options.get("weights", (1,) * len(names)), float)
    shares /= shares.sum()
    assert merged.keys() == base.keys()
    for name, value in merged.items():
        expected = reference([each[name] for each in given], base[name], shares)
        # near a threshold float32 may decide otherwise than float64, on a number in ten thousand
        apart = np.abs(value - expected) > 1e-6
        assert apart.mean() <= 1e-4, (name, int(apart.sum()))
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert whole.num_parameters() == record["params"]
    assert record["sha256"] == {p.name: sha256_file(p) for p in (tmp_path / "out").iterdir() if p.name != "merge.json"}


def test_merging_a_model_with_itself_gives_it_back_in_its_own_dtype_and_files(place: Path, tmp_path: Path) -> None:
    for method, based in (("linear", None), ("slerp", None), ("ties", "base"), ("important", "base")):
        out, base = tmp_path / method, None if based is None else str(place / based)
        density = 1.0 if base else None
        merge([place / "c", place / "c"], out, MergeConfig(method=method, base=base, density=density))  # type: ignore[arg-type]
        found, expected = weights_of(out), weights_of(place / "c")
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=0, atol=2e-7)
        assert sorted(p.name for p in out.glob("*.safetensors*")) == sorted(
            p.name for p in (place / "c").glob("*.safetensors*")
        )


def test_what_does_not_go_together_is_refused_and_nothing_is_left(place: Path, tmp_path: Path) -> None:
    out, a = tmp_path / "out", place / "a"

    def refused(models: Sequence[Path], expected: str, error: Any = InputError, **options: Any) -> None:
        with pytest.raises(error, match=expected):
            merge(models, out, MergeConfig(**options))
        assert not out.exists()

    refused([a], "two models or more", UsageError)
    refused([a, a, a], "slerp is between two models, and 3 are given", UsageError, method="slerp")
    refused([a, a], "3 numbers for 2 models", UsageError, weights=(1, 1, 1))
    refused([a, save_tiny_model(tmp_path / "deep", num_hidden_layers=3)], "num_hidden_layers in config.json is 3 and 2")
    other = tmp_path / "other"
    other.mkdir()
    for path in (place / "b").iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    tokens = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokens["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (other / "tokenizer.json").write_text(json.dumps(tokens))
    refused([a, other], "another tokenizer")
    (other / "tokenizer.json").write_bytes((a / "tokenizer.json").read_bytes())
    tensors = load_file(other / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    save_file({**tensors, name: tensors[name][:-1].clone()}, other / "model.safetensors", {"format": "pt"})
    refused([a, other], rf"{name} is \(63, 32\) in .*other and \(64, 32\) in")
    save_file({k: v for k, v in tensors.items() if k != name}, other / "model.safetensors", {"format": "pt"})
    refused([a, other], f"has the tensor {name}, and .*other has not")
    save_file({**tensors, name: tensors[name] * torch.inf}, other / "model.safetensors", {"format": "pt"})
    refused([a, other], f"merged tensor {name} holds numbers that are not finite")
    for options, expected in (
        ({"method": "ties"}, "name the `base`"),
        ({"density": 0.5}, "linear knows no density"),
        ({"method": "slerp", "weights": (1, 2, 3)}, "two `weights`"),
    ):
        with pytest.raises(ValueError, match=expected):
            MergeConfig(**options)  # type: ignore[arg-type]


def test_the_command_plans_and_merges_over_nothing(place: Path, tmp_path: Path) -> None:
    models, out = [str(place / name) for name in "abc"], str(tmp_path / "out")
    options = ("--method", "ties", "--base", str(place / "base"), "--weights", "1,2,2")
    planned = run_cli("merge", *models, out, *options, "--dry-run", "--json")
    assert json.loads(planned.stdout)["models"] == models
    assert not Path(out).exists()
    record = json.loads(run_cli("merge", *models, out, *options, "--json").stdout)
    assert (record["method"], record["weights"], record["base"]) == ("ties", [1.0, 2.0, 2.0], str(place / "base"))
    assert len(record["manifest"]["inputs"]["models"]) == 3
    again = run_cli("merge", *models[:2], out)
    assert (again.returncode, "out is the folder of a model" in again.stderr) == (2, True)
