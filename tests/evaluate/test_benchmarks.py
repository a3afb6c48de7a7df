"""Benchmarks on a generated data set: lm-eval's own backend is the reference."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluation_world import Request

from compress.base.currency import input_changes, inputs_now
from compress.base.disk import sha256_file
from compress.base.errors import InputError, UsageError
from compress.evaluate import EvalConfig, evaluate_model, evaluation_inputs
from compress.evaluate.harness.scorer import Scorer
from compress.inference.readout import load_checkpoint


def settings(world: dict[str, Path], *tasks: str, **options: Any) -> EvalConfig:
    options = {"speed": False, "device": "cpu", **options}
    return EvalConfig(tasks=list(tasks), datasets_root=str(world["root"]), task_folder=str(world["tasks"]), **options)


def harness_scores(world: dict[str, Path], tasks: list[str]) -> dict[str, Any]:
    """lm-eval's own hf backend, its own loading, tasks that name the folders of the data."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    folder = world["folder"] / "reference"
    folder.mkdir(exist_ok=True)
    for path in world["tasks"].iterdir():
        text = path.read_text().replace("acme/quiz", str(world["root"] / "acme" / "quiz"))
        (folder / path.name).write_text(text.replace("training_split: train\nvalidation_split: validation\n", ""))
    result = simple_evaluate(
        model="hf",
        model_args={"pretrained": str(world["model"]), "dtype": "float32"},
        tasks=tasks,
        device="cpu",
        batch_size=3,
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
    )
    assert result is not None
    return dict(result)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_numbers_are_those_of_lm_evals_hf_backend(world: dict[str, Path]) -> None:
    reference = harness_scores(world, ["quiz", "quiz_mass", "quiz_rolling"])
    tasks = settings(world, "quiz", "quiz_mass", "quiz_rolling", batch_tokens=200)
    ours = evaluate_model(world["model"], tasks)["tasks"]
    for metric in ("word_perplexity", "bits_per_byte"):
        expected = reference["results"]["quiz_rolling"][f"{metric},none"]
        assert ours["quiz_rolling"][metric] == pytest.approx(expected, rel=1e-4)
    for task, metrics in (("quiz", ("acc", "acc_norm")), ("quiz_mass", ("acc",))):
        for metric in metrics:
            expected = reference["results"][task]
            assert ours[task][metric] == pytest.approx(expected[f"{metric},none"], abs=1e-5)
            assert ours[task][f"{metric}_stderr"] == pytest.approx(expected[f"{metric}_stderr,none"], abs=1e-5)
    scorer = Scorer(load_checkpoint(world["model"], device="cpu"), 200)
    samples = reference["samples"]["quiz"]
    requests = [Request(*arguments) for sample in samples for arguments in sample["arguments"]]
    expected_ll = [response[0][0] for sample in samples for response in sample["resps"]]
    found = [ll for ll, _ in scorer.loglikelihood(requests)]
    assert found == pytest.approx(expected_ll, abs=2e-4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_options_that_a_task_shuffles_have_lm_evals_order(world: dict[str, Path]) -> None:
    reference = harness_scores(world, ["quiz_shuffled"])["samples"]["quiz_shuffled"]
    out = world["folder"] / "eval" / "shuffled.json"
    evaluate_model(world["model"], settings(world, "quiz_shuffled"), out=out)
    items = [json.loads(line) for line in out.with_name("shuffled.items.jsonl").read_text().splitlines()]
    assert [item["options"] for item in items] == [sample["doc"]["options"] for sample in reference]
    assert len({tuple(item["options"]) for item in items}) > 12


def test_only_an_accuracy_has_chance(world: dict[str, Path]) -> None:
    score = evaluate_model(world["model"], settings(world, "quiz_mcc"))["tasks"]["quiz_mcc"]
    assert (score["primary"], score["chance"]) == ("mcc", None)
    assert -1 <= score["mcc"] <= 1


def test_inputs_are_the_files_that_a_benchmark_was_read_from(world: dict[str, Path], tmp_path: Path) -> None:
    here = {**world, "root": tmp_path / "root", "tasks": tmp_path / "tasks"}
    for name in ("root", "tasks"):
        shutil.copytree(world[name], here[name])
    asked, out = settings(here, "quiz", "quiz_mass", limit=2), tmp_path / "m.json"
    made = evaluate_model(here["model"], asked, out=out)["manifest"]["inputs"]
    assert list(made["benchmarks"]["datasets"]) == ["acme/quiz"]

    def now() -> dict[str, Any]:
        return inputs_now(evaluation_inputs(lambda: here["model"], asked, earlier=out))

    assert now() == made
    with (here["root"] / "acme" / "spans" / "validation.jsonl").open("a") as unused:
        unused.write("\n")
    for name in ("root/acme/quiz/.cache/lock", "tasks/__pycache__/quiz_class.pyc"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("of a tool")
    assert now() == made
    task, rows = here["tasks"] / "quiz.yaml", here["root"] / "acme" / "quiz" / "test.jsonl"
    for file in (task, rows):
        before = file.read_text()
        file.write_text(before.replace("1", "2").replace("Answer:", "The answer:"))
        assert now() != made, file
        file.write_text(before)
    assert now() == made
    for name in ("root", "tasks"):  # a disk that is not mounted is no change
        here[name].rename(tmp_path / f"{name}-away")
    assert now() == {role: value for role, value in made.items() if role != "benchmarks"}
    assert input_changes(made, now()) == []


def test_items_reproduce_the_scores_and_chance_comes_from_their_options(world: dict[str, Path]) -> None:
    out = world["folder"] / "eval" / "m.json"
    result = evaluate_model(world["model"], settings(world, "quizzes", "quiz_mass", "quiz_class"), out=out)
    lines = (out.parent / "m.items.jsonl").read_text().splitlines()
    items = [json.loads(line) for line in lines]
    assert json.loads(out.read_text()) == json.loads(json.dumps(result))
    assert result["manifest"]["outputs"] == {"m.items.jsonl": sha256_file(out.parent / "m.items.jsonl")}
    for name, score in result["tasks"].items():
        own = [item for item in items if name in (item["task"], *item["groups"])]
        assert len(own) == score["n"]
        for metric in own[0]["metrics"]:
            assert sum(item["metrics"][metric] for item in own) / len(own) == pytest.approx(score[metric])
        assert sum(item["chance"] for item in own) / len(own) == pytest.approx(score["chance"])
    # Items have 2, 3, 4, 5 options in turn, one of them right.
    assert result["tasks"]["quiz"]["chance"] == pytest.approx((1 / 2 + 1 / 3 + 1 / 4 + 1 / 5) / 4)
    assert result["tasks"]["quiz_mass"]["chance"] == pytest.approx(result["tasks"]["quiz"]["chance"])
    assert result["tasks"]["quiz_class"]["chance"] == 0.0
    assert set(items[0]["metrics"]) == {"acc", "acc_norm", "acc_bytes"}
    assert "acc_bytes" not in result["tasks"]["quiz_mass"]
    quizzes = result["tasks"]["quizzes"]
    assert quizzes["members"] == ["quiz", "quiz_again"]
    assert quizzes["acc"] == pytest.approx(quizzes["acc_macro"])


def test_the_limit_takes_the_first_items(world: dict[str, Path]) -> None:
    all_items, few = (evaluate_model(world["model"], settings(world, "quiz_tag", limit=n))["tasks"] for n in (None, 6))
    assert set(few) == {"quiz", "quiz_again"}
    assert (all_items["quiz"]["n"], few["quiz"]["n"]) == (24, 6)
    assert few["quiz"]["chance"] == pytest.approx((1 / 2 + 1 / 3 + 1 / 4 + 1 / 5 + 1 / 2 + 1 / 3) / 6)


@pytest.mark.parametrize(
    ("task", "options", "error", "words"),
    [
        ("quizz", {}, UsageError, ["quizz", "did you mean", "quiz"]),
        ("quiz_lost", {}, InputError, ["quiz_lost", "acme/lost", "hf download acme/lost --repo-type dataset"]),
        ("quiz", {"num_fewshot": 3}, InputError, ["quiz", "3 shots", "'train'", "acme/quiz", "--num-fewshot"]),
        ("quiz_split", {}, InputError, ["quiz_split", "exam", "test"]),
        ("quiz_code", {}, UsageError, ["quiz_code", "runs the code"]),
        ("quiz_pictures", {}, UsageError, ["quiz_pictures", "pictures"]),
        ("quiz", {"datasets_root": "nowhere"}, UsageError, ["nowhere", "hf download"]),
    ],
)
def test_errors_name_what_is_missing_and_what_to_do(
    world: dict[str, Path], task: str, options: dict[str, Any], error: type[Exception], words: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    # The full index of lm-eval takes seconds; here an unknown name is looked up among ours alone.
    from compress.evaluate.harness import names

    monkeypatch.setattr(names, "_manager", lambda folders, include_defaults: _small_manager(folders))
    config = settings(world, task, **{k: v for k, v in options.items() if k != "datasets_root"})
    if "datasets_root" in options:
        config = EvalConfig(tasks=[task], speed=False, task_folder=str(world["tasks"]), datasets_root="nowhere")
    with pytest.raises(error) as caught:
        evaluate_model(world["model"], config)
    for word in words:
        assert word in str(caught.value)


def _small_manager(folders: tuple[str, ...]) -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=list(folders), include_defaults=False)


def test_one_sequence_split_at_two_points_keeps_two_scores(world: dict[str, Path]) -> None:
    checkpoint = load_checkpoint(world["model"], device="cpu")
    ids = list(range(40, 60))
    requests = [(("", ""), ids[:12], ids[12:]), (("", ""), ids[:5], ids[5:]), (("", ""), ids[:19], [7])]
    found = Scorer(checkpoint, 64)._loglikelihood_tokens(requests, disable_tqdm=True)
    with torch.no_grad():
        logits = checkpoint.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    step = [float(logits[i, ids[i + 1]]) for i in range(19)]
    assert [score for score, _ in found] == pytest.approx(
        [sum(step[11:]), sum(step[4:]), float(logits[18, 7])], abs=1e-4
    )


def test_scores_of_a_bf16_model_are_float32_and_do_not_tie(world: dict[str, Path]) -> None:
    checkpoint = load_checkpoint(world["model"], dtype="bfloat16", device="cpu")
    context, options = list(range(60, 90)), list(range(200))
    found = Scorer(checkpoint, 4096)._loglikelihood_tokens([(("", ""), context, [o]) for o in options])
    with torch.no_grad():
        hidden = checkpoint.model.base_model(torch.tensor([context])).last_hidden_state[0, -1].double()
        exact = (checkpoint.model.get_output_embeddings().weight.double() @ hidden).log_softmax(-1)
        in_bf16 = checkpoint.model(torch.tensor([context])).logits[0, -1].log_softmax(-1)
    assert [score for score, _ in found] == pytest.approx(exact[options].tolist(), abs=1e-4)
    assert len({score for score, _ in found}) > 1.5 * len(set(in_bf16[options].tolist()))


def test_an_answer_that_cannot_fit_is_refused_by_name(world: dict[str, Path]) -> None:
    scorer = Scorer(load_checkpoint(world["model"], device="cpu"), 64)
    with pytest.raises(InputError, match=r"The task quiz asks for an answer option of 300 tokens.*at most 256"):
        scorer.loglikelihood([Request("Say", "x" * 300)])
