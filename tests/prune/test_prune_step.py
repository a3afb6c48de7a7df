"""The step as a whole: figures of the plan, files of the student, the record, refusals, and a full disk."""

import errno
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import warm
from fault_injection import FullDisk
from helpers import run_cli, save_tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from compress.base.currency import changes
from compress.base.disk import sha256_file
from compress.base.errors import CompressError, InputError, UsageError
from compress.base.machine import Memory
from compress.model.files import model_fingerprint
from compress.prune import PruneConfig, PrunePlan, check, plan_prune, prune, prune_settings
from compress.prune import plan as planning
from compress.weights import room

LLAMA_1B = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}


def plan_of(folder: Path, keep: str = "alternate", **config: Any) -> PrunePlan:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return plan_prune(str(folder), keep)


def test_the_plan_for_llama_3_2_1b_needs_only_its_config(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, **LLAMA_1B)
    assert (plan.params_before, plan.params_after) == (1_235_814_400, 749_242_368)
    assert plan.kept_layers == (1, 3, 5, 7, 9, 11, 13, 15)
    assert plan.dropped_layers == (0, 2, 4, 6, 8, 10, 12, 14)
    assert (plan.bytes_before, plan.bytes_after) == (2 * 1_235_814_400, 2 * 749_242_368)
    assert (plan.kv_bytes_per_token_before, plan.kv_bytes_per_token_after) == (16 * 2048, 8 * 2048)
    assert plan.notes == ()
    assert "1,235,814,400 -> 749,242,368" in plan.describe()
    assert json.loads(json.dumps(plan.to_dict()))["kept_layers"] == [1, 3, 5, 7, 9, 11, 13, 15]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json"]


def test_alternate_says_what_it_costs_to_drop_the_first_layer_and_what_does_better(tmp_path: Path) -> None:
    assert "--layers 8 --by kl-greedy --repair" in plan_of(tmp_path, **LLAMA_1B).describe()
    assert "kl-greedy" not in plan_of(tmp_path, **LLAMA_1B | {"num_hidden_layers": 15}).describe()
    assert "kl-greedy" not in plan_of(tmp_path, "uniform:8", **LLAMA_1B).describe()


def test_the_plan_says_when_gemma2_loses_its_sliding_layers(tmp_path: Path) -> None:
    small = {"vocab_size": 100, "hidden_size": 16, "intermediate_size": 16, "head_dim": 4}
    plan = plan_of(tmp_path, model_type="gemma2", num_hidden_layers=8, num_attention_heads=4, **small)
    assert plan.layer_types_before == {"sliding_attention": 4, "full_attention": 4}
    assert plan.layer_types_after == {"full_attention": 4}
    (note,) = plan.notes
    assert "only 4 full_attention" in note
    proposal = plan_prune(str(tmp_path), note.rpartition("--keep ")[2])
    assert proposal.layer_types_after == {"sliding_attention": 2, "full_attention": 2}
    assert proposal.notes == ()


def test_the_dry_run_counts_parts_cache_and_flops(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_1B))
    done = run_cli("prune", str(tmp_path), str(tmp_path / "out"), "--dry-run", "--json")
    plan = json.loads(done.stdout)
    assert plan["context_tokens"] == 2048
    embeddings, layer = 128256 * 2048, 2 * 2048 * (2048 + 512) + 3 * 2048 * 8192
    for when, layers in (("before", 16), ("after", 8)):
        assert plan[f"parts_{when}"]["embeddings"] == embeddings
        assert sum(plan[f"parts_{when}"].values()) == plan[f"params_{when}"]
        products = 2 * (embeddings + layers * layer)
        assert plan[f"prefill_flops_per_token_{when}"] == products + layers * 8192 * 2049 / 2
        assert plan[f"decode_flops_per_token_{when}"] == products + layers * 8192 * 2048
        assert plan[f"cache_bytes_{when}"] == 2048 * plan[f"kv_bytes_per_token_{when}"] == 2048 * layers * 2048


def test_the_mix_is_preserved_when_asked(tmp_path: Path) -> None:
    shape = {"vocab_size": 100, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 4, "head_dim": 4}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma2", "num_hidden_layers": 12, **shape}))
    done = run_cli("prune", str(tmp_path), str(tmp_path / "out"), "--preserve-pattern", "--dry-run", "--json")
    plan = json.loads(done.stdout)
    assert plan["keep"] == "pattern:alternate"
    assert (len(plan["kept_layers"]), plan["kept_layers"][-1]) == (6, 11)
    assert plan["layer_types_after"] == {"sliding_attention": 3, "full_attention": 3}
    assert plan["notes"] == []
    refused = run_cli("prune", str(tmp_path), str(tmp_path / "out"), "--preserve-pattern", "--keep", "0,2", "--dry-run")
    assert refused.returncode == 2
    assert "names its layers itself" in refused.stderr


@pytest.mark.faults(6)
@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({**LLAMA_1B, "num_hidden_layers": 0}, "num_hidden_layers = 0"),
        ({**LLAMA_1B, "model_type": "no-such-type"}, "config.json"),
        ({**LLAMA_1B, "depth_gains": [1.0] * 16}, "depth_gains"),
        ({**LLAMA_1B, "quantization_config": {"quant_method": "fp8"}}, "quantiz"),
    ],
)
def test_a_config_that_cannot_be_cut_is_refused(tmp_path: Path, config: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        plan_of(tmp_path, **config)


def test_a_missing_or_broken_teacher_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        plan_prune(str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match=r"no config\.json"):
        plan_prune(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json"):
        plan_prune(str(tmp_path))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_tiny_model(tmp_path_factory.mktemp("teacher"), num_hidden_layers=5)
    (folder / "generation_config.json").write_text('{"temperature": 0.6, "do_sample": false, "eos_token_id": 256}')
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "README.md").write_text("# the teacher's own card")
    (folder / "LICENSE.txt").write_text("licence")
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    (folder / "modeling_x.py").write_text("raise SystemExit")
    return folder


def test_the_student_is_a_complete_checkpoint_of_its_own(teacher: Path, tmp_path: Path) -> None:
    out = tmp_path / "run" / "student-init"
    result = prune(teacher, out, "0,2,4")
    names = {path.name for path in out.iterdir()}
    assert names == {
        "config.json", "model.safetensors", "prune.json", "generation_config.json", "chat_template.jinja",
        "LICENSE.txt", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    for name in names - {"config.json", "model.safetensors", "prune.json"}:
        assert (out / name).read_bytes() == (teacher / name).read_bytes()
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (teacher, out))
    assert after == {**before, "num_hidden_layers": 3}
    assert (
        AutoTokenizer.from_pretrained(out)("abc")["input_ids"]
        == AutoTokenizer.from_pretrained(teacher)("abc").input_ids
    )
    assert AutoModelForCausalLM.from_pretrained(out).config.num_hidden_layers == 3
    assert str(out) in result.describe()


def test_the_record_says_what_was_done_and_whether_it_is_current(teacher: Path, tmp_path: Path) -> None:
    out = tmp_path / "student"
    result = prune(teacher, out, "0,2,4")
    record = json.loads((out / "prune.json").read_text())
    assert record == json.loads(json.dumps(result.record))
    assert (record["kept_layers"], record["dropped_layers"]) == ([0, 2, 4], [1, 3])
    assert (record["method"], record["scores"], record["keep"]) == ("spec", None, "0,2,4")
    assert record["params_after"] == AutoModelForCausalLM.from_pretrained(out).num_parameters()
    assert record["bytes_after"] == (out / "model.safetensors").stat().st_size
    assert record["bytes_before"] == (teacher / "model.safetensors").stat().st_size
    assert record["sha256"] == {p.name: sha256_file(p) for p in sorted(out.iterdir()) if p.name != "prune.json"}
    assert record["check"]["passed"]
    assert record["check"]["max_abs_difference"] <= 1e-5
    inputs = {"teacher": model_fingerprint(teacher)}

    def found(keep: str) -> list[str]:
        config = prune_settings(keep, check=True)
        return changes(out, record["manifest"], kind=PruneConfig, config=config, inputs=inputs)

    assert found("0,2,4") == []
    assert found("alternate") == ['keep was "0,2,4" and is "alternate"']
    (out / "generation_config.json").write_text("{}")
    assert found("0,2,4") == ["its files were altered (generation_config.json)"]


def test_an_output_that_exists_is_left_alone(teacher: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path, tmp_path / "file"):
        with pytest.raises(UsageError, match=str(out)):
            prune(teacher, out)
    assert (tmp_path / "file").read_text() == "mine"
    with pytest.raises(UsageError, match="5 layers, 0 to 4"):
        prune(teacher, tmp_path / "student", "7")
    assert not (tmp_path / "student").exists()


def test_a_wrong_student_is_noticed_and_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = {"use_sliding_window": True, "sliding_window": 4096, "max_window_layers": 2}
    teacher = save_tiny_model(tmp_path / "teacher", "qwen2", **shape)
    derive = planning.derive

    def forgetful(*args: Any) -> planning.Derivation:
        derivation = derive(*args)
        derivation.student_json["layer_types"].reverse()
        return derivation

    prune(teacher, tmp_path / "right", "0,3")
    monkeypatch.setattr(planning, "derive", forgetful)
    with pytest.raises(CompressError, match=r"differ from those of the teacher .* by up to [0-9.]+") as caught:
        prune(teacher, tmp_path / "wrong", "0,3")
    assert not isinstance(caught.value, UsageError | InputError)
    assert {path.name for path in tmp_path.iterdir()} == {"teacher", "right"}


def test_a_wrong_cache_is_noticed(teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest, calls = check._generate, []

    def forgetful(model: Any, ids: Any) -> Any:
        text, logits = honest(model, ids)
        calls.append(len(calls))
        return text, logits.roll(1, dims=1) if calls == [0] else logits

    monkeypatch.setattr(check, "_generate", forgetful)
    with pytest.raises(CompressError, match="logits with a key-value cache differ"):
        prune(teacher, tmp_path / "student")
    assert list(tmp_path.iterdir()) == []


def test_a_teacher_that_differs_from_itself_with_a_cache_is_followed(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = check._generate

    def forgetful(model: Any, ids: Any) -> Any:
        text, logits = honest(model, ids)
        return text, logits.roll(1, dims=1)

    monkeypatch.setattr(check, "_generate", forgetful)
    result = prune(teacher, tmp_path / "student")
    assert result.check.teacher_cache_differs
    assert "as its teacher's" in result.describe()


def test_a_teacher_too_big_to_compare_says_so(teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "host_memory", lambda: Memory(1000, 1000))
    result = prune(teacher, tmp_path / "student")
    assert not result.check.passed
    assert "1000 B are free" in str(result.check.skipped)
    assert "not compared with the teacher" in result.describe()
    assert result.record["check"]["max_abs_difference"] is None


def test_a_type_we_have_not_verified_needs_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = save_tiny_model(tmp_path / "teacher", "arcee")
    assert prune(teacher, tmp_path / "student", "0,3").check.passed
    with pytest.raises(UsageError, match=r"arcee .*Leave the check on"):
        prune(teacher, tmp_path / "other", check=False)
    monkeypatch.setattr(check, "host_memory", lambda: Memory(1000, 1000))
    with pytest.raises(InputError, match="more memory"):
        prune(teacher, tmp_path / "other")


def test_what_cannot_be_checked_is_refused(tmp_path: Path) -> None:
    teacher = save_tiny_model(tmp_path / "helium", "helium")
    with pytest.raises(InputError, match="helium loads but does not run"):
        prune(teacher, tmp_path / "student")
    assert not (tmp_path / "student").exists()


def test_a_disk_without_room_is_refused_before_work(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 10}))
    with pytest.raises(CompressError, match="10 B are free"):
        prune(teacher, tmp_path / "student")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_leaves_nothing(teacher: Path, tmp_path: Path) -> None:
    assert (teacher / "model.safetensors").stat().st_size > 120_000
    full = FullDisk(file_bytes=60_000)
    done = warm().run([full], "prune", str(teacher), str(tmp_path / "student"), "--no-check")
    assert done.returncode == 1, done.stderr
    assert "could not be written (File too large)" in done.said
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_teacher_that_cannot_be_read_is_not_blamed_on_the_output(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("os.preadv", broken)
    with pytest.raises(CompressError) as caught:
        prune(teacher, tmp_path / "student")
    assert f"{teacher / 'model.safetensors'} could not be read" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_half_precision_stays_half_precision(tmp_path: Path) -> None:
    teacher = save_tiny_model(tmp_path / "teacher")
    AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.bfloat16).save_pretrained(teacher)
    result = prune(teacher, tmp_path / "student")
    assert result.plan.dtype == "bfloat16"
    student = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    assert {parameter.dtype for parameter in student.parameters()} == {torch.bfloat16}
