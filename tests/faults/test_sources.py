"""What our own code never does, read from the code: run or unpickle what others wrote."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import ROOT

PACKAGES = ("compress", "prune", "distill", "evaluate")
FORBIDDEN = {
    "torch.load", "pickle.load", "pickle.loads", "pickle.Unpickler", "joblib.load", "numpy.load", "np.load", "eval",
    "exec", "compile", "yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load", "os.system",
}  # fmt: skip
LOADERS = ("from_pretrained", "from_config")


def calls() -> Iterator[tuple[Path, ast.Call, str]]:
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call):
                    yield path, node, ast.unparse(node.func)


@pytest.mark.faults(16)
def test_nothing_is_unpickled_or_evaluated() -> None:
    found = [f"{path.relative_to(ROOT)}:{node.lineno} {name}" for path, node, name in calls() if name in FORBIDDEN]
    assert found == []


@pytest.mark.faults(7, 16)
def test_every_loader_of_transformers_is_told_about_remote_code() -> None:
    """Written out at each call: unset, transformers asks on stdin. Weights are loaded in one place, as safetensors,
    those of a GGUF file, which holds no code, in another, and those that are quantised as they are read in a third."""
    loaders = [(path, node, name) for path, node, name in calls() if name.startswith("Auto") and name.endswith(LOADERS)]
    assert len(loaders) >= 7
    for path, node, name in loaders:
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        assert options.get("trust_remote_code") in ("False", "trusted()"), f"{path}:{node.lineno}"
        if name == "AutoModelForCausalLM.from_pretrained" and "gguf_file" not in options:
            expected = "ship/exporting/quantized.py" if "quantization_config" in options else "model/load.py"
            assert path == ROOT / "compress" / expected
            assert options["use_safetensors"] == "True"
