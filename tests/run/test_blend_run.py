"""A run on a blend: what is measured of each source is what a measurement of that source alone finds."""

import math
from pathlib import Path

import pytest
import torch
from commands import warm
from fault_injection import Signal
from helpers import run_cli
from recipe_world import make_blend_world, run_to
from transformers import AutoModelForCausalLM

from compress.base.disk import read_json, read_rows, sha256_tree
from compress.data import TokenStore
from compress.data.store.blend import part_folder
from compress.distill.loop.heldout import pooled
from compress.evaluate import EvalConfig, evaluate_model
from compress.verify import verify_run


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_blend_world(tmp_path_factory.mktemp("world"), tokens="12k", weight=3)


@pytest.fixture(scope="module")
def run(world: Path) -> Path:
    return run_to(world / "run", world / "blend.yaml")


def test_each_source_is_measured_in_training_as_whole_logits_say(run: Path) -> None:
    """Of the cut, before the first step, in float64."""
    store = TokenStore.open(run / "data")
    models = [
        AutoModelForCausalLM.from_pretrained(path).double().eval()
        for path in (run / "student-init", run.parent / "teacher")
    ]
    first, last = (read_rows(run / "train" / "metrics.jsonl")[place] for place in (0, -1))
    for number, name in enumerate(store.sources):
        rows = torch.from_numpy(store.heldout(4)[store.heldout_sources(4) == number])
        with torch.no_grad():
            log_q, log_p = (model(rows).logits[:, :-1].flatten(0, 1).log_softmax(-1) for model in models)
        kl = float((log_p.exp() * (log_p - log_q)).sum(-1).mean())
        hard = float(torch.nn.functional.nll_loss(log_q, rows[:, 1:].flatten()))
        assert first[f"heldout_kl/{name}"] == pytest.approx(kl, rel=1e-5)
        assert first[f"heldout_hard/{name}"] == pytest.approx(hard, rel=1e-6)
    record = read_json(run / "student" / "distill.json")
    for measure in ("kl", "hard"):
        of_sources = [last[f"heldout_{measure}/{name}"] for name in store.sources]
        assert last[f"heldout_{measure}"] == pytest.approx(sum(of_sources) / 2)
        assert [record["heldout_sources"][name][measure] for name in store.sources] == of_sources


def test_means_of_sources_are_pooled_by_their_tokens() -> None:
    found = pooled({"a": {"kl": 1.0, "kl_stderr": 0.3}, "b": {"kl": 4.0, "kl_stderr": 0.4}}, {"a": 300.0, "b": 100.0})
    assert found == pytest.approx({"kl": 1.75, "kl_stderr": math.sqrt((0.75 * 0.3) ** 2 + (0.25 * 0.4) ** 2)})
    assert pooled({"a": {"kl": 1.0, "kl_stderr": 0.3}, "b": {"kl": 2.0}}, {"a": 1.0, "b": 1.0}) == {"kl": 1.5}


def test_each_source_is_scored_as_if_it_were_alone(run: Path) -> None:
    whole = read_json(run / "eval" / "student.json")
    config = EvalConfig(heldout_sequences=2, speed=False, samples=0, responses=0)
    for number, name in enumerate(TokenStore.open(run / "data").sources):
        text = part_folder(run / "data", number)
        alone = evaluate_model(run / "student", config, teacher=run.parent / "teacher", text=text)
        for part in ("heldout", "fidelity"):
            found = whole[part]["by_source"][name]
            expected = {key: alone[part][key] for key in found if key in alone[part]}
            assert {key: found[key] for key in expected} == pytest.approx(expected, rel=1e-6)
            assert expected.keys() >= {"tokens", "documents"}
            assert ("loss_nats_stderr" if part == "heldout" else "kl_nats_stderr") in expected
        assert whole["heldout"]["by_source"][name]["tokens"] == 2 * 63


def test_the_report_and_the_verification_know_the_sources(run: Path, world: Path) -> None:
    page, tables = (run / "report.html").read_text(), (run / "report.md").read_text()
    assert "Grey lines are the held-out text of each source." in page
    assert "num &lt;b&gt;" in page
    assert "num <b>" not in page
    for label in ("teacher", "cut", "healed"):
        assert f"| {label}, words |" in tables
    assert [check.describe() for check in verify_run(run) if check.status == "FAILED"] == []
    changed = world / "words.jsonl"
    content = changed.read_text()
    try:
        changed.write_text(content.replace("is no", "is a"))
        failed = [check.describe() for check in verify_run(run) if check.status == "FAILED"]
    finally:
        changed.write_text(content)
    assert len(failed) == 1
    assert "words.jsonl changed" in failed[0]


def test_killed_in_training_it_goes_on_to_the_same_bytes(run: Path, world: Path) -> None:
    kill = Signal(at=("compress.distill.loop.step:Losses.backward",), call=9)
    struck = warm().run((kill,), "run", str(world / "blend.yaml"), "--out", str(world / "cut"))
    assert struck.struck
    assert struck.returncode == -9
    run_to(world / "cut", world / "blend.yaml")
    assert sha256_tree(world / "cut" / "student", "*.safetensors") == sha256_tree(run / "student", "*.safetensors")
    logs = [read_rows(folder / "train" / "metrics.jsonl") for folder in (run, world / "cut")]
    of_time = {"tokens_per_s", "mfu", "peak_gib", "seconds"}
    plain = [[{key: row[key] for key in row.keys() - of_time} for row in rows] for rows in logs]
    assert plain[0] == plain[1]


def test_distill_takes_a_blend_by_its_options(world: Path) -> None:
    sources = f"data.sources=[{{dataset: {world}/text.jsonl}}, {{dataset: {world}/words.jsonl}}]"
    options = ["--tokens=4096", "--set=data.seq_len=64", "--set=data.heldout_sequences=4", f"--set={sources}"]
    models = [f"--student={world}/teacher", f"--teacher={world}/teacher"]
    done = run_cli("distill", *models, *options, "--set=distill.batch_tokens=512", f"--out={world}/by-options")
    assert done.returncode == 0, done.stderr
    assert "held-out words: KL " in done.stdout
    done = run_cli("distill", *models, f"--out={world}/none")
    assert done.returncode == 2
    assert "write exactly one of `dataset`" in done.stderr


def test_the_plan_says_what_each_source_gives(world: Path) -> None:
    assert "blend, in tokens: num <b> 3k, words 9k" in run_cli("run", str(world / "blend.yaml"), "--dry-run").stdout
