"""However the tool is started, `compress.*` is ours, `import evaluate` is Hugging Face's, and help is quick."""

import json
import os
import shutil
import subprocess
import sys
import time
import venv
from pathlib import Path

import click
import pytest
import torch
from helpers import ROOT

PROBE = """
import os.path, sys
sys.modules["transformers"] = None  # what evaluate can do without takes two thirds of the time
import evaluate, compress.evaluate, lm_eval.api.metrics
assert callable(evaluate.load) and "site-packages" in evaluate.__file__, evaluate.__file__
assert hasattr(lm_eval.api.metrics, "exact_match_hf_evaluate")
from evaluate.utils import logging
print("OURS", os.path.realpath(compress.evaluate.__file__))
"""
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=1"]
ENTRY_POINTS = {
    "python -c": [sys.executable, "-c", PROBE],
    "python script": [sys.executable, "probe.py"],
    "python -m": [sys.executable, "-m", "probe"],
    "torchrun": [*TORCHRUN, "-m", "probe"],
    "torchrun --no-python": [*TORCHRUN, "--no-python", sys.executable, "-m", "probe"],
    "pytest": [str(Path(sys.executable).with_name("pytest")), "-q", "-s", "probe.py", "-p", "no:cacheprovider"],
    "python -m pytest": [sys.executable, "-m", "pytest", "-q", "-s", "probe.py", "-p", "no:cacheprovider"],
}


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_evaluate_stays_hugging_faces(name: str, tmp_path: Path) -> None:
    """The probe stands in a copy of the root: the checkout's folders, linked, and the probe beside them."""
    for entry in ROOT.iterdir():
        if entry.name in ("compress", "prune", "distill", "evaluate", "pyproject.toml"):
            (tmp_path / entry.name).symlink_to(entry)
    test = "\ndef test_probe():\n    pass\n" if "pytest" in name else ""
    (tmp_path / "probe.py").write_text(PROBE + test)
    env = {**os.environ, "PYTHONPATH": "." if name in ("python -c", "pytest") else ""}
    done = subprocess.run(ENTRY_POINTS[name], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"OURS {ROOT / 'evaluate' / '__init__.py'}" in done.stdout


def test_the_command_itself_sees_hugging_faces_evaluate() -> None:
    """`python -m compress.cli` from the root, where our folder is first on sys.path; evaluate has all that it uses."""
    script = "import sys; sys.argv = ['compress', '--version']; import runpy, evaluate\n"
    script += "assert 'site-packages' in evaluate.__file__\nrunpy.run_module('compress.cli', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("compress, version")


def test_help_is_quick() -> None:
    """Best of five, so that a busy machine does not decide; torch alone would take seconds."""
    command = [str(Path(sys.executable).with_name("compress")), "--help"]
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        seconds.append(time.perf_counter() - start)
    assert "prune" in done.stdout
    assert min(seconds) < 0.5


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys; from compress.cli import cli; cli(['--help'], standalone_mode=False); print(sorted(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    for heavy in ("torch", "transformers", "datasets", "numpy", "pydantic", "rich"):
        assert f"'{heavy}'" not in done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "runs", "*.egg-info")
    shutil.copytree(ROOT, folder / "source", ignore=ignored)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    subprocess.run([*command, str(folder / "source")], check=True, capture_output=True)
    shutil.rmtree(folder / "source")
    (built,) = folder.glob("*.whl")
    return built


def test_a_wheel_works_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    """Installed without the checkout, run from elsewhere; its dependencies are lent by path."""
    home = tmp_path / "env"
    venv.create(home, with_pip=False)
    site = next(home.glob("lib/python*/site-packages"))
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)], check=True
    )
    assert [p.name for p in site.iterdir() if p.suffix == "" and p.name != "bin"] == ["compress"]
    (site / "lent.pth").write_text(str(Path(click.__file__).parents[1]))
    script = (
        f"{PROBE}\nfrom compress.demo import RECIPE\nfrom compress.run.recipe import load_recipe\nload_recipe(RECIPE)"
    )
    demo, evaluation = site / "compress" / "demo", site / "compress" / "evaluate"
    assert (demo / "teacher" / "model.safetensors").is_file()
    assert list((demo / "tasks").glob("*.yaml"))
    assert list((evaluation / "tasks").glob("*.yaml"))
    python = str(home / "bin" / "python")
    done = subprocess.run([python, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert f"OURS {site.resolve()}" in done.stdout
    done = subprocess.run([python, "-m", "compress.cli", "--version"], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.startswith("compress, version")


@pytest.mark.slow
def test_a_wheel_brings_its_own_dependencies(wheel: Path, tmp_path: Path) -> None:
    """Minutes: pip fetches torch, then the wheel with all it asks for; the demo's own teacher is cut from elsewhere."""
    home, empty = tmp_path / "env", tmp_path / "empty"
    venv.create(home, with_pip=True)
    pip = [str(home / "bin" / "pip"), "--quiet", "--disable-pip-version-check"]
    reachable = [*pip, "--retries", "0", "--timeout", "10", "download", "--no-deps", "--dest", str(tmp_path), "click"]
    if subprocess.run(reachable, capture_output=True).returncode != 0:
        pytest.skip("pip reaches no package index")
    subprocess.run([*pip, "install", f"torch=={torch.__version__.partition('+')[0]}"], check=True)
    subprocess.run([*pip, "install", str(wheel)], check=True)
    subprocess.run([*pip, "check"], check=True)
    empty.mkdir()
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

    def run(name: str, *arguments: str) -> str:
        command = [str(home / "bin" / name), *arguments]
        done = subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "prune" in run("compress", "--help")
    site = next(home.glob("lib/python*/site-packages")).resolve()
    assert f"OURS {site}" in run("python", "-c", PROBE)
    record = json.loads(run("compress", "prune", str(site / "compress" / "demo" / "teacher"), "student", "--json"))
    assert record["check"]["passed"]
    assert [path.name for path in empty.iterdir()] == ["student"]
