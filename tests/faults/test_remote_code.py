"""A model that brings its own code: refused, unless the user says to trust it; then every step works on it."""

import json
import sys
from pathlib import Path

import pytest
import torch
from commands import Commands
from helpers import byte_tokenizer, save_tiny_model
from run_world import SMALL_STEPS
from torch import nn
from transformers import AutoModelForCausalLM

CODE = """
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaMLP


class OwnConfig(LlamaConfig):
    model_type = "own"


class OwnMLP(LlamaMLP):
    def forward(self, x):
        return -super().forward(x)


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        for layer in self.model.layers:
            layer.mlp = OwnMLP(config)
        self.post_init()
"""
AUTO_MAP = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}


@pytest.fixture(autouse=True)
def _own_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers copies trusted code into its cache and imports it from there."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))


def with_own_code(folder: Path) -> Path:
    """A llama whose MLPs are subtracted, which only the code beside it says."""
    save_tiny_model(folder)
    fields = json.loads((folder / "config.json").read_text())
    fields |= {"model_type": "own", "architectures": ["OwnForCausalLM"], "auto_map": AUTO_MAP}
    (folder / "config.json").write_text(json.dumps(fields))
    (folder / "modeling_own.py").write_text(CODE)
    return folder


@torch.no_grad()
def logits(folder: Path, kept: tuple[int, ...] | None = None) -> torch.Tensor:
    """Of plain transformers, with the layers `kept` only."""
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    if kept is not None:
        model.model.layers = nn.ModuleList(model.model.layers[i] for i in kept)
    found: torch.Tensor = model(torch.tensor([[1, 7, 3, 200, 9]]), use_cache=False).logits
    return found


@pytest.mark.faults(16)
def test_trusted_code_goes_through_every_step(commands: Commands, recipe: Path, tmp_path: Path) -> None:
    teacher, run = with_own_code(tmp_path / "teacher"), tmp_path / "run"
    trust = ("--set", f"teacher.model={teacher}", "--set", "teacher.trust_remote_code=true")
    done = commands.run(SMALL_STEPS, "run", str(recipe), "--out", str(run), *trust[:2])
    assert done.returncode == 3
    assert "--trust-remote-code" in done.said
    done = commands.run(SMALL_STEPS, "run", str(recipe), "--out", str(run), *trust)
    assert done.returncode == 0, done.stderr
    assert torch.equal(logits(run / "student-init"), logits(teacher, kept=(1, 3)))
    assert not torch.equal(logits(run / "student"), logits(run / "student-init"))
    assert (run / "student" / "modeling_own.py").read_text() == CODE
    assert json.loads((run / "student" / "config.json").read_text())["auto_map"] == AUTO_MAP
    again = commands.run(SMALL_STEPS, "run", str(recipe), "--out", str(run), *trust)
    assert again.returncode == 0
    assert again.stderr.count("done, unchanged") >= 6
    untrusted = commands.run([], "verify", str(run))
    assert untrusted.returncode == 3
    verified = commands.run([], "verify", str(run), "--trust-remote-code")
    assert verified.returncode == 0, verified.said


@pytest.mark.faults(16)
def test_changed_code_is_another_model(commands: Commands, recipe: Path, tmp_path: Path) -> None:
    teacher, out = with_own_code(tmp_path / "teacher"), tmp_path / "eval.json"
    byte_tokenizer().save_pretrained(teacher)
    arguments = ("eval", str(teacher), "--text", str(recipe.parent / "text"), "--out", str(out), "--set",
                 "eval.speed=false", "--set", "eval.heldout_seq_len=32")  # fmt: skip
    assert commands.run([], *arguments).returncode == 3
    losses = []
    for code in (CODE, CODE.replace("-super", "super")):
        (teacher / "modeling_own.py").write_text(code)
        assert commands.run([], *arguments, "--trust-remote-code").returncode == 0
        found = json.loads(out.read_text())
        losses.append((found["heldout"]["loss_nats"], found["manifest"]["inputs"]["model"]["modeling_own.py"]))
    assert losses[0][0] != losses[1][0]
    assert losses[0][1] != losses[1][1]
