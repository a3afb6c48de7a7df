"""The benchmarks run, and every installed peer computes the loss it is measured on."""

import json
from pathlib import Path
from typing import Any

import pytest
from commands import warm
from helpers import ROOT, SHARED_DATA

BENCHMARKS = ROOT / "benchmarks"
LIMITS = {"fp32": (1e-6, 2e-6), "bf16": (1e-2, 2e-2)}
"""Relative errors of loss and gradients: a few units in the last place of the dtype's logits."""


def run(script: str, *options: str) -> str:
    done = warm().run((), *options, script=BENCHMARKS / script, cwd=BENCHMARKS)
    assert done.returncode == 0, done.stderr
    return done.stdout


def entries(path: Path, kind: str) -> list[dict[str, Any]]:
    content = json.loads(path.read_text())
    assert content["format"] == "compress-benchmark-1"
    return [entry for entry in content["entries"].values() if entry["case"]["kind"] == kind]


@pytest.mark.filterwarnings("ignore")  # peers' own
@pytest.mark.parametrize("dtype", LIMITS)
def test_every_peer_computes_the_definition(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss and gradients against float64 at T = 2 with ignored labels, so what a call leaves out would show."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import loss
    from loss_peers import available

    peers = [peer for peer in available("cpu") if not peer.compiled]
    found = loss.measure_errors(peers, loss.DTYPES[dtype], "cpu")
    assert {"ours", "dense", "distillkit"} <= set(found)
    for name, errors in found.items():
        assert errors["loss"] < LIMITS[dtype][0], name
        assert errors["hidden_gradient"] < LIMITS[dtype][1], name
        assert errors["head_gradient"] < LIMITS[dtype][1], name


def test_the_loss_benchmark_runs_and_a_rerun_measures_nothing_anew(tmp_path: Path) -> None:
    options = ("--smoke", "--dtypes", "fp32", "--out", str(tmp_path))
    page = run("loss.py", *options)
    results = tmp_path / "smoke" / "loss.json"
    (timed,) = entries(results, "time")
    for samples in timed["result"].values():
        assert {"floor", "ours", "dense"} <= set(samples)
        assert all(len(times) == timed["case"]["samples"] and min(times) > 0 for times in samples.values())
    (exact,) = entries(results, "errors")
    assert set(exact["result"]) == set(timed["case"]["peers"])
    assert {entry["case"]["peers"][0] for entry in entries(results, "memory")} == {"ours", "dense"}
    assert (tmp_path / "smoke" / "loss.md").read_text() == page
    before = results.read_bytes()
    assert run("loss.py", *options) == page
    assert results.read_bytes() == before


@pytest.mark.slow
def test_the_step_benchmark_trains_the_same_in_both_loops(tmp_path: Path) -> None:
    """Random words cannot be learnt, so the loss stays where the same definition puts it for both."""
    run("step.py", "--smoke", "--dtypes", "fp32", "--loops", "hf_dense", "--out", str(tmp_path))
    found = {e["case"]["loop"]: e["result"] for e in entries(tmp_path / "smoke" / "step.json", "step")}
    assert set(found) == {"ours", "hf_dense"}
    assert found["ours"]["loss"] == pytest.approx(found["hf_dense"]["loss"], rel=0.01)
    assert all(len(result["windows_s"]) == 2 and result["peak_bytes"] > 2**26 for result in found.values())


@pytest.mark.slow
@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason=f"needs {SHARED_DATA}")
def test_the_evaluation_benchmark_runs_and_finds_lm_evals_scores(tmp_path: Path) -> None:
    options = ("--smoke", "--rounds", "1", "--out", str(tmp_path), "--work", str(tmp_path / "work"))
    run("evaluate.py", *options)
    ours, theirs = (entry["result"] for entry in entries(tmp_path / "smoke" / "evaluate.json", "command"))
    assert ours["scores"] == theirs["scores"]
    memory = entries(tmp_path / "smoke" / "evaluate.json", "memory")
    assert {entry["case"]["side"] for entry in memory} == {"ours", "lm-eval"}
