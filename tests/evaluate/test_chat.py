"""Prompts as chats: lm-eval's own run with `apply_chat_template` is the reference, prompt by prompt."""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from chat_templates import CHATML, DEAF, GEMMA2, GEMMA3
from helpers import save_tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from compress.base.config import from_flags
from compress.base.disk import read_rows
from compress.base.errors import CompressError, InputError, UsageError
from compress.base.progress import say_once
from compress.cli.results import print_summary
from compress.data import DataConfig, prepare
from compress.evaluate import EvalConfig, evaluate_model
from compress.evaluate.harness.local_data import local_datasets
from compress.evaluate.harness.names import find_tasks
from compress.report.compare import compare_models
from compress.run.options import EvalOptions

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
CHOICE = """
task: chat_choice
dataset_path: acme/quiz
output_type: multiple_choice
test_split: test
fewshot_split: test
description: "Questions on {{gold}}."
doc_to_text: "{{question}}\\nAnswer:"
doc_to_target: gold
doc_to_choice: options
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
WRITTEN = """
task: chat_written
dataset_path: acme/spans
output_type: generate_until
validation_split: validation
fewshot_split: validation
doc_to_text: "{{text}}"
doc_to_target: "{{value}}"
generation_kwargs: {until: ["zz"], max_gen_toks: 8, do_sample: false}
metric_list: [{metric: exact_match}]
"""
TASKS = {
    "chat_choice": CHOICE,
    "chat_begun": CHOICE.replace("chat_choice", "chat_begun") + 'gen_prefix: "It is"\n',
    "chat_written": WRITTEN,
    "chat_written_on": WRITTEN.replace("chat_written", "chat_written_on") + 'gen_prefix: "It is"\n',
}
LIMIT = 8


@pytest.fixture(autouse=True)
def said_anew() -> None:
    """What other tests were told of once."""
    say_once.cache_clear()


@pytest.fixture(scope="module")
def folder(world: dict[str, Path]) -> Path:
    """Tasks of all kinds of prompts over the data of `world`."""
    tasks = world["folder"] / "chat_tasks"
    tasks.mkdir()
    for name, text in TASKS.items():
        (tasks / f"{name}.yaml").write_text(text)
    return tasks


def speaker(folder: Path, template: str | None, *, adds_bos: bool) -> Path:
    """A tiny model whose tokenizer has a chat template, and puts BOS before a text by itself, or does not."""
    from tokenizers.processors import TemplateProcessing

    save_tiny_model(folder, max_position_embeddings=4096, vocab_size=258)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"bos_token": "<bos>"})
    if adds_bos:
        bos = ("<bos>", tokenizer.bos_token_id)
        tokenizer._tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[bos])
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


def reference(model: Path, world: dict[str, Path], folder: Path, shots: int, **how: Any) -> dict[str, Any]:
    from lm_eval import simple_evaluate

    with local_datasets(world["root"]):
        result = simple_evaluate(
            model="hf",
            model_args={"pretrained": str(model), "dtype": "float32"},
            tasks=list(TASKS),
            num_fewshot=shots,
            device="cpu",
            batch_size=1,
            limit=LIMIT,
            bootstrap_iters=0,
            task_manager=find_tasks(list(TASKS), str(folder)),
            **how,
        )
    assert result is not None
    return dict(result)


@pytest.mark.parametrize(
    ("template", "adds_bos", "shots", "system", "multiturn"),
    [
        (CHATML, False, 0, None, None),
        (CHATML, True, 2, "Be brief.", True),
        (GEMMA3, True, 2, "Be brief.", None),
        (GEMMA3, False, 2, None, False),
        (GEMMA2, True, 1, None, None),
        (DEAF, False, 0, None, None),
        (None, True, 1, "Be brief.", None),
    ],
    ids=["chatml", "chatml-turns-bos", "gemma3-turns", "gemma3-one-turn", "gemma2", "deaf", "plain-system"],
)
def test_prompts_and_scores_are_those_of_lm_eval(
    template: str | None, adds_bos: bool, shots: int, system: str | None, multiturn: bool | None,
    world: dict[str, Path], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    model, chat = speaker(tmp_path / "model", template, adds_bos=adds_bos), template is not None
    turns = chat if multiturn is None else multiturn
    theirs = reference(
        model, world, folder, shots, apply_chat_template=chat, system_instruction=system, fewshot_as_multiturn=turns
    )
    config = EvalConfig(
        tasks=list(TASKS), num_fewshot=shots, limit=LIMIT, datasets_root=str(world["root"]), task_folder=str(folder),
        chat_template=chat, system=system, fewshot_as_multiturn=multiturn, speed=False, device="cpu", batch_tokens=4096,
    )  # fmt: skip
    capsys.readouterr()
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": f"Words, {i}. " * 9}) + "\n" for i in range(9)))
    rows = DataConfig(dataset=str(tmp_path / "text.jsonl"), seq_len=64, heldout_sequences=1, bos="always")
    text = prepare(rows, model, tmp_path / "store", visible=False).path  # its BOS frames plain prompts, and no chats
    ours = evaluate_model(model, config, out=tmp_path / "e.json", text=text)
    said = capsys.readouterr().err
    lost = 2 * LIMIT if template in (GEMMA2, DEAF) else 0
    assert (f"{lost} prompts are without the description" in said) == bool(lost)
    samples = [sample for name in TASKS for sample in theirs["samples"][name]]
    answers = set()
    for sample, item in zip(samples, read_rows(tmp_path / "e.items.jsonl"), strict=True):
        assert item["doc_sha256"] == sample["doc_hash"]
        if "answer" in item:
            answers.add(item["answer"])
            assert item["answer"] == sample["filtered_resps"][0]
        else:
            expected = [response[0] for response in sample["filtered_resps"]]
            assert item["log_likelihoods"] == pytest.approx(expected, abs=2e-4)
    assert len(answers) > LIMIT / 2
    for name in TASKS:
        for key, value in theirs["results"][name].items():
            metric, comma, _ = key.partition(",")
            if comma and not metric.endswith("_stderr"):
                assert ours["tasks"][name][metric] == pytest.approx(value, abs=1e-9), (name, metric)


def options(world: dict[str, Path], folder: Path, **more: Any) -> EvalConfig:
    places = {"datasets_root": str(world["root"]), "task_folder": str(folder)}
    return EvalConfig(**{"tasks": ["chat_choice"], "limit": LIMIT, "speed": False, "device": "cpu", **places, **more})


def test_scores_of_other_prompts_are_named_and_not_related(
    world: dict[str, Path], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = speaker(tmp_path / "model", CHATML, adds_bos=False)
    other = speaker(tmp_path / "other", GEMMA3, adds_bos=False)
    ways: dict[str, dict[str, Any]] = {
        "plain": {},
        "chat": {"chat_template": True},
        "again": {"chat_template": True, "fewshot_as_multiturn": True},
        "brief": {"chat_template": True, "system": "Be brief."},
    }
    made = {}
    for name, way in ways.items():
        made[name] = evaluate_model(model, options(world, folder, **way), out=tmp_path / f"{name}.json")["prompting"]
    evaluate_model(other, options(world, folder, chat_template=True), out=tmp_path / "other.json")
    sha = sha256(CHATML.encode()).hexdigest()
    assert made["plain"] is None
    assert made["chat"] == made["again"] == {
        "chat_template_sha256": sha, "system": None, "fewshot_as_multiturn": True
    }  # fmt: skip

    def compared(*names: str) -> dict[str, Any]:
        return compare_models([str(tmp_path / f"{name}.json") for name in names])

    for name in ("plain", "brief"):
        report = compared("chat", name)
        assert report["compared"]["m1"]["chat_choice"]["note"] == "not comparable: prompts of another kind"
        (said,) = report["mismatches"]
        assert said.endswith("their scores are not related.")
        assert f"chats in the template {sha[:8]}" in said
    foreign = compared("chat", "other")
    assert foreign["compared"]["m1"]["chat_choice"]["paired_items"] == LIMIT
    assert "are in another" in foreign["mismatches"][0]
    assert compared("brief", "brief")["mismatches"] == []
    print_summary(compared("brief"), False)
    shown = " ".join(capsys.readouterr().out.split())
    assert "solved examples as turns, after the system text “Be brief.”" in shown


def test_a_chat_model_asked_in_plain_text_is_told_of_once(
    world: dict[str, Path], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = speaker(tmp_path / "model", CHATML, adds_bos=False)
    for _ in range(2):
        evaluate_model(model, options(world, folder))
    told = "The tokenizer has a chat template, and benchmark prompts are plain text"
    assert capsys.readouterr().err.count(told) == 1
    say_once.cache_clear()
    evaluate_model(model, options(world, folder, chat_template=True))
    evaluate_model(model, EvalConfig(speed=False, device="cpu"), prompts=["No benchmark"])
    evaluate_model(world["model"], options(world, folder))  # a tokenizer without a template
    assert told not in capsys.readouterr().err
    dated = speaker(tmp_path / "dated", "{{ strftime_now('%d %b %Y') }}" + CHATML, adds_bos=False)
    evaluate_model(dated, options(world, folder, chat_template=True))
    assert "today's date" in capsys.readouterr().err


def test_given_prompts_are_answered_as_transformers_writes_chats(tmp_path: Path) -> None:
    model = speaker(tmp_path / "model", GEMMA3, adds_bos=True)
    config = EvalConfig(chat_template=True, system="Be brief.", speed=False, device="cpu", sample_tokens=12)
    (found,) = evaluate_model(model, config, prompts=["Who?"])["samples"]
    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    text = "<bos><start_of_turn>user\nBe brief.\n\nWho?<end_of_turn>\n<start_of_turn>model\n"
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
    assert (ids == tokenizer.bos_token_id).sum() == 1
    network: Any = AutoModelForCausalLM.from_pretrained(model)
    answer = network.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
    assert found == {"prompt": "Who?", "continuation": tokenizer.decode(answer, skip_special_tokens=True)}


BROKEN = "{{ messages[0].content.missing() }}"


@pytest.mark.parametrize(
    ("template", "way", "words"),
    [
        (None, {}, ["the tokenizer of", "has none", "chat_template.jinja"]),
        ({"tool_use": CHATML}, {}, ["has tool_use and no default one"]),
        (BROKEN, {}, ["cannot be used", "missing"]),
        (GEMMA2, {"system": "Be brief."}, ["eval.system", "no place for a system text"]),
        (DEAF, {"system": "Be brief."}, ["eval.system", "no place for a system text"]),
    ],
    ids=["none", "no-default", "broken", "system", "deaf"],
)
def test_chats_that_cannot_be_written_are_refused_before_the_model_is_loaded(
    template: Any, way: dict[str, Any], words: list[str], world: dict[str, Path], folder: Path, tmp_path: Path
) -> None:
    model = speaker(tmp_path / "model", template, adds_bos=False)
    (model / "model.safetensors").rename(tmp_path / "away")
    with pytest.raises(CompressError) as caught:
        evaluate_model(model, options(world, folder, chat_template=True, **way))
    for word in words:
        assert word in str(caught.value)


def test_turns_need_a_chat() -> None:
    with pytest.raises(UsageError, match=r"fewshot_as_multiturn needs a chat"):
        from_flags(EvalOptions, {"eval": {"fewshot_as_multiturn": True}}, ())


def test_messages_that_a_template_refuses_are_named(world: dict[str, Path], folder: Path, tmp_path: Path) -> None:
    """A solved example without an answer leaves two turns of the user's side by side."""
    (tmp_path / "tasks").mkdir()
    unanswered = CHOICE.replace("chat_choice", "chat_mute") + 'fewshot_config: {doc_to_target: ""}\n'
    (tmp_path / "tasks" / "chat_mute.yaml").write_text(unanswered)
    model = speaker(tmp_path / "model", GEMMA3, adds_bos=False)
    asked = options(world, tmp_path / "tasks", tasks=["chat_mute@1"], chat_template=True)
    with pytest.raises(InputError, match=r"refuses a prompt of the messages .*user, user.*--no-fewshot-as-multiturn"):
        evaluate_model(model, asked)
