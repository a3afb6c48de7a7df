"""Text that the student writes and learns from: what is written, what is learned of it, and what a kill leaves."""

import dataclasses
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chat_world import CHATML, chat_tokenizer, conversations_in, write_chats
from commands import warm
from data_world import documents
from distill_world import SEQ_LEN, World, losses_of
from fault_injection import Signal
from helpers import save_tiny_model, tiny_config
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from compress.base.config import build_from
from compress.base.disk import sha256_file
from compress.base.errors import CompressError, InputError, UsageError
from compress.data import DataConfig, TokenStore, prepare
from compress.distill import DistillConfig, plan_distill
from compress.distill.loop.accelerator import make_accelerator
from compress.distill.objective.loss import IGNORE_INDEX
from compress.distill.objective.schedules import Setting, on_own_text
from compress.distill.objective.signals import Needs
from compress.distill.resources.auto import resolve_sharding
from compress.distill.resources.flops import measuring_flops_per_token
from compress.distill.rollouts.config import Growth, OnPolicyConfig
from compress.distill.rollouts.prompts import is_on_policy, prompt_of, share_prompts
from compress.distill.rollouts.state import Counts, Rollouts, count
from compress.distill.rollouts.writing import Writer, rows_of
from compress.distill.rows.batch import Batch
from compress.distill.rows.source import StoreRows, packed
from compress.distill.students.config import LoraConfig
from compress.distill.students.lora import add_adapters, merge
from compress.distill.teachers.config import MixtureConfig
from compress.distill.teachers.several import SeveralTeachers
from compress.distill.teachers.source import LiveTeacher
from compress.verify.training import Training, check_metrics

Options = Callable[..., DistillConfig]
EOS = 256
OWN = OnPolicyConfig(prompt_tokens=8, new_tokens=Growth(from_=4, to=16, repetition=0.5, steps=2))
UNLIKE = ("tokens_per_s", "peak_gib", "mfu", "writing_tokens_per_s", "learning_tokens_per_s")


def timeless(rows: list[dict[str, Any]], *without: str) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in (*UNLIKE, *without)} for row in rows]


def weights(world: World, name: str) -> str:
    return sha256_file(world.root / name / "student" / "model.safetensors")


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).train()


def writer_of(student: Any, config: OnPolicyConfig, work: Path, ends: Sequence[int] = (EOS,), ids: int = 257) -> Writer:
    accelerator = make_accelerator(DistillConfig(on_policy=config), work)
    return Writer(
        config,
        student=student,
        accelerator=accelerator,
        ends=set(ends),
        vocabulary=ids,
        seed=0,
        micro_batch_rows=2,
    )


def prompts_of_lengths(*lengths: int) -> list[Any]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, length) for length in lengths]


def test_no_step_on_policy_is_training_without_bit_for_bit(world: World, options: Options) -> None:
    """GKD with lambda 0, of a student with dropout."""
    world.run("without", options())
    world.run("none", options(on_policy=dataclasses.replace(OWN, fraction=0.0)))
    assert weights(world, "none") == weights(world, "without")
    assert timeless(world.metrics("none"), "on_policy") == timeless(world.metrics("without"))


@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "gpt2", "mamba"])
def test_greedy_rollouts_are_those_of_transformers_one_by_one(kind: str, tmp_path: Path) -> None:
    """Of prompts of several lengths, in batches, from a student in training whose generation config has a penalty."""
    model = load(save_tiny_model(tmp_path / "model", kind))
    prompts = prompts_of_lengths(9, 3, 14, 9, 1)
    if kind == "mamba":  # which has no mask for what pads a prompt on the left
        prompts = prompts_of_lengths(9, 9, 9)
    config = OnPolicyConfig(temperature=0.0, batch_tokens=60)
    expected = []
    for prompt in prompts:
        ids = torch.from_numpy(prompt)[None]
        out = model.eval().generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False)
        expected.append(out[0, len(prompt) :].tolist())
    model.generation_config.repetition_penalty = 3.0
    model.train()
    writer = writer_of(model, config, tmp_path)
    assert writer.rollouts(prompts, list("abcde")[: len(prompts)], 20) == expected
    assert model.training
    assert model.generation_config.repetition_penalty == 3.0
    assert any(rollout != expected[0] for rollout in expected)


def test_adapters_write_too(tmp_path: Path) -> None:
    """As the model that they are merged into, which is another than without them."""
    folder, options = save_tiny_model(tmp_path / "model"), LoraConfig(r=4)
    models = [load(folder) for _ in range(2)]
    adapters = [add_adapters(model, options, seed=0) for model in models]
    for model in models:
        torch.manual_seed(1)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(0, 0.3)
    plain = merge(adapters[1], torch.float32)
    prompts, config = prompts_of_lengths(5, 7), OnPolicyConfig(temperature=0.0)
    found = writer_of(models[0], config, tmp_path).rollouts(prompts, ["a", "b"], 12)
    for prompt, rollout in zip(prompts, found, strict=True):
        ids = torch.from_numpy(prompt)[None]
        out = plain.eval().generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
        assert rollout == out[0, len(prompt) :].tolist()
    assert found != writer_of(load(folder), config, tmp_path).rollouts(prompts, ["a", "b"], 12)


def test_a_token_that_the_teacher_lacks_is_never_written(tmp_path: Path) -> None:
    model = load(save_tiny_model(tmp_path / "model", scale=0.02))
    writer = writer_of(model, OnPolicyConfig(), tmp_path, ends=(), ids=3)
    (rollout,) = writer.rollouts(prompts_of_lengths(4), ["a"], 60)
    assert set(rollout) == {0, 1, 2}


def test_the_same_is_written_whatever_is_beside_it(tmp_path: Path) -> None:
    """On two processes as on one: a rollout is known by the step and the row's place in it."""
    model, work = load(save_tiny_model(tmp_path / "model", scale=0.05)), tmp_path
    batch = packed(np.stack(prompts_of_lengths(*[32] * 5)), np.arange(5))
    config = OnPolicyConfig(prompt_tokens=6, new_tokens=10)
    whole = share_prompts(batch, config, processes=1, rank=0)
    halves = [share_prompts(batch, config, processes=2, rank=rank) for rank in (0, 1)]
    assert [len(half.batch) for half in halves] == [3, 3]
    assert [half.rows for half in halves] == [[0, 1, 2], [0, 1]]

    def written(prompts: Any, step: int) -> list[list[int]]:
        names = [f"{step} {prompts.first + row}" for row in prompts.rows]
        return writer_of(model, config, work).rollouts(prompts.ids, names, 10)

    assert written(whole, 3) == written(halves[0], 3) + written(halves[1], 3)
    assert written(whole, 3) != written(whole, 4)


def test_the_loss_of_written_rows_is_the_definition_in_float64(tmp_path: Path) -> None:
    """KL(student || teacher), T = 2, over what was written alone, each row without its neighbours; gradients too."""
    student = load(save_tiny_model(tmp_path / "student", scale=0.1, num_hidden_layers=1))
    teacher = load(save_tiny_model(tmp_path / "teacher", scale=0.1, seed=1)).requires_grad_(False)
    own = OnPolicyConfig(prompt_tokens=6, new_tokens=12)
    config = DistillConfig(divergence="reverse_kl", temperature=2.0, micro_batch_rows=2, on_policy=own)
    batch = packed(np.stack(prompts_of_lengths(*[32] * 5)), np.arange(5))
    prompts = share_prompts(batch, own, processes=1, rank=0)
    # any letter of 40 ends a rollout, so that they are of all lengths
    writer = writer_of(student, own, tmp_path, ends=range(40))
    written = writer(prompts, 0, 12)
    rollouts = writer.rollouts(prompts.ids, [f"0 {row}" for row in prompts.rows], 12)
    lengths = {len(rollout) for rollout in rollouts}
    assert len(lengths) > 2
    assert written.counts.tokens == sum(map(len, rollouts))

    losses = losses_of(config, student, teacher, tmp_path)
    setting = on_own_text(Setting({"soft": 0.8, "hard": 0.2}, 2.0))
    terms = losses.backward(written.share, setting)
    exact, guide = load(tmp_path / "student", torch.float64).eval(), load(tmp_path / "teacher", torch.float64).eval()
    total = torch.zeros((), dtype=torch.float64)
    for prompt, rollout in zip(prompts.ids, rollouts, strict=True):
        ids = torch.tensor([[*prompt.tolist(), *rollout]])
        places = slice(len(prompt) - 1, ids.shape[1] - 1)
        log_q = (exact(ids).logits[0, places] / 2).log_softmax(-1)
        log_p = (guide(ids).logits[0, places].detach() / 2).log_softmax(-1)
        total = total + 4 * (log_q.exp() * (log_q - log_p)).sum()
    loss = total / sum(map(len, rollouts))
    loss.backward()
    assert (terms["soft"].weight, terms["hard"].weight) == (1.0, 0.0)
    assert float(terms["soft"].value) == pytest.approx(float(loss.detach()), rel=1e-5)
    for (name, found), expected in zip(student.named_parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(found.grad.double(), expected.grad, rtol=1e-3, atol=1e-6, msg=name)


def test_after_its_end_a_rollout_has_no_labels(tmp_path: Path) -> None:
    """What was written is learned, its end too, and neither the prompt nor what fills a row up."""
    batch = Batch(ids=np.arange(24).reshape(3, 8), labels=np.arange(21).reshape(3, 7), row_ids=np.arange(7, 10))
    prompts = share_prompts(batch, OnPolicyConfig(prompt_tokens=3, new_tokens=5), processes=1, rank=0)
    assert [ids.tolist() for ids in prompts.ids] == [[0, 1, 2], [8, 9, 10], [16, 17, 18]]
    found = rows_of(prompts._replace(rows=[0, 2], ids=[prompts.ids[0], prompts.ids[2]]), [[5, EOS], [7, 7, 7, 7]])
    no = IGNORE_INDEX
    assert found.ids.tolist() == [[0, 1, 2, 5, EOS, 0, 0], [0] * 7, [16, 17, 18, 7, 7, 7, 7]]
    assert found.labels.tolist() == [[no, no, 5, EOS, no, no], [no] * 6, [no, no, 7, 7, 7, 7]]
    assert found.row_ids.tolist() == [7, 8, 9]
    model = load(save_tiny_model(tmp_path / "model", scale=0.02))
    ends = range(128)  # every second token ends a rollout
    rollouts = writer_of(model, OnPolicyConfig(), tmp_path, ends=ends).rollouts(
        prompts_of_lengths(*[4] * 20), list(map(str, range(20))), 6
    )
    assert all(len(rollout) == 6 or rollout[-1] in ends for rollout in rollouts)
    assert not any(token in ends for rollout in rollouts for token in rollout[:-1])
    assert {len(rollout) for rollout in rollouts} >= {1, 2, 3}


def test_a_document_that_is_kept_apart_is_gone_on_with_alone() -> None:
    config = OnPolicyConfig(prompt_tokens=4, new_tokens=2)
    ids = np.array([[1, EOS, 3, 4, 5, 6, 7, 8], [1, 2, 3, EOS, 5, 6, 7, 8], [1, 2, 3, 4, EOS, 6, 7, 8]])
    starts = np.zeros(ids.shape, np.bool_)
    starts[[0, 1, 2], [2, 4, 5]] = True
    apart, joined = packed(ids, np.arange(3), starts), packed(ids, np.arange(3))
    found = [prompt_of(apart, row, config) for row in range(3)]
    assert [None if ids is None else ids.tolist() for ids in found] == [[3, 4], None, [1, 2, 3, 4]]
    together = [prompt_of(joined, row, config) for row in range(3)]
    assert [ids.tolist() for ids in together if ids is not None] == ids[:, :4].tolist()


def test_a_conversation_is_gone_on_with_at_its_answer(tmp_path: Path) -> None:
    """The first of a row whose question leaves room for an answer."""
    folder = save_tiny_model(tmp_path / "model", vocab_size=261)
    chat_tokenizer(CHATML).save_pretrained(folder)
    texts = [text[:16] for text in documents(200, 7)]
    long = ["x" * 150, "y"]
    write_chats(tmp_path / "chats.jsonl", [long, *(texts[i : i + 2] for i in range(0, 200, 2))])
    config = DataConfig(dataset=str(tmp_path / "chats.jsonl"), seq_len=192, heldout_sequences=2)
    store = prepare(config, folder, tmp_path / "data", visible=False)
    rows = StoreRows(store, seed=0, epochs=1, num_heldout=0, apart=True, selection=None)
    batch, own = rows.read(np.arange(store.num_rows)), OnPolicyConfig(new_tokens=40)
    chats = conversations_in(store.rows(range(store.num_rows)), store.marks(range(store.num_rows)))
    questions = {tuple(ids[: learned.index(True)]) for ids, learned in chats}
    found = [prompt_of(batch, row, own) for row in range(len(batch))]
    assert len(found) > 5
    assert {tuple(ids.tolist()) for ids in found if ids is not None} <= questions
    assert all(len(ids) + 40 <= 192 for ids in found if ids is not None)
    assert sum(ids is None for ids in found) == sum(len(question) + 40 > 192 for question in questions) == 1


def test_rollouts_grow_while_little_is_repeated() -> None:
    config = OnPolicyConfig(new_tokens=Growth(from_=8, to=32, repetition=0.25, steps=2))

    def counts(grams: int, repeated: int, empty: int = 0) -> Counts:
        return Counts(4, 12, 40, 1, empty, grams, repeated)

    state, limits = Rollouts(limit=8), []
    for repeated in (2, 4, 2, 3, 0, 0, 0, 0, 0, 0, 9, 9):
        state.note(counts(10, repeated), config, rows=4, seconds=0.5)
        limits.append(state.limit)
    assert limits == [8, 8, 8, 13, 13, 20, 20, 31, 31, 32, 32, 32]
    assert (state.steps, state.rows, state.tokens, state.seconds) == (12, 48, 480, 6.0)


def test_repetition_is_the_share_of_4_grams_that_were_there_before() -> None:
    prompts = [np.arange(3), np.arange(5)]
    found = count(prompts, [[1, 2, 3, 4, 1, 2, 3, 4, 1, EOS], [EOS]], {EOS})
    # 1234 2341 3412 4123 1234 2341, 341E: seven, of which two were there
    assert found == Counts(2, 8, 11, 2, 1, 7, 2)
    assert found.repetition == 2 / 7
    assert count([], [], {EOS}).repetition == 0


def test_seed_and_step_decide_how_many_steps_are_on_policy() -> None:
    steps = range(2000)
    taken = [{step for step in steps if is_on_policy(OnPolicyConfig(fraction=f), 3, step)} for f in (0, 0.3, 0.7, 1)]
    assert [len(taken[0]), len(taken[3])] == [0, 2000]
    assert taken[1] < taken[2]
    assert [len(each) for each in taken[1:3]] == pytest.approx([600, 1400], abs=60)
    assert not is_on_policy(None, 3, 0)


@pytest.mark.faults(1)
@pytest.mark.parametrize(
    "changes",
    [{}, pytest.param({"lora": LoraConfig(r=4, dropout=0.2)}, marks=pytest.mark.slow)],
    ids=["whole", "adapters"],
)
def test_a_run_killed_while_writing_and_while_learning_ends_bitwise_equal(
    world: World, options: Options, changes: dict[str, Any]
) -> None:
    config = options(tokens=14 * 4 * SEQ_LEN, heldout_every=6, on_policy=OWN, **changes)

    def killed(at: str, call: int) -> None:
        threads = str(torch.get_num_threads())
        done = warm().run([Signal(at=(at,), call=call)], *world.command("cut", config), OMP_NUM_THREADS=threads)
        assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]

    world.run("whole", config)
    killed("compress.distill.rollouts.writing:generate_plainly", 4)
    killed("compress.distill.loop.train:learning_rate", 4)
    world.run("cut", config)
    assert weights(world, "cut") == weights(world, "whole")
    rows = world.metrics("whole")
    assert timeless(world.metrics("cut")) == timeless(rows)
    steps = [row for row in rows if "on_policy" in row]
    assert {row["on_policy"] for row in steps} == {0, 1}
    limits = [row["rollout_limit"] for row in steps if row["on_policy"]]
    assert limits[0] < limits[-1]
    assert all(row["hard_scaled"] == 0 for row in steps if row["on_policy"])


def test_two_processes_write_and_learn_as_one(world: World, options: Options) -> None:
    config = options(batch_tokens=5 * SEQ_LEN, tokens=28 * SEQ_LEN, micro_batch_rows=2, on_policy=OWN)
    student = save_tiny_model(world.root / "student", scale=0.1, num_hidden_layers=2)  # without dropout
    world = dataclasses.replace(world, student=student)
    world.run("one", config)
    done = warm().launch(2, *world.command("two", config))
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (load_file(world.root / run / "student" / "model.safetensors") for run in ("one", "two"))
    for key in one:
        torch.testing.assert_close(two[key], one[key], rtol=1e-4, atol=2e-5)
    for single, double in zip(*(timeless(world.metrics(name)) for name in ("one", "two")), strict=True):
        assert double == {k: v if isinstance(v, str) else pytest.approx(v, rel=1e-4) for k, v in single.items()}


def test_a_rollout_is_taught_by_the_teachers_of_its_rows_source(tmp_path: Path) -> None:
    """Rollouts of all lengths, one row without any: the loss is that of two teachers on their rows, by labels."""
    student = load(save_tiny_model(tmp_path / "student", scale=0.1, num_hidden_layers=1))
    teachers = [load(save_tiny_model(tmp_path / f"{seed}", scale=0.1, seed=seed)).eval() for seed in (1, 2)]
    sources = ("web", "books", "web", "books", "books")
    batch = dataclasses.replace(packed(np.stack(prompts_of_lengths(*[32] * 5)), np.arange(5)), sources=sources)
    prompts = share_prompts(batch, OnPolicyConfig(prompt_tokens=6, new_tokens=12), processes=1, rank=0)
    prompts = prompts._replace(rows=prompts.rows[:4], ids=prompts.ids[:4])
    rows = rows_of(prompts, [[5] * length for length in (3, 7, 12, 1)])
    live = [LiveTeacher(teacher, Needs(), 257) for teacher in teachers]
    own = {"model": "other", "sources": {"web": 0.0, "books": 1.0}}
    mixture = build_from(MixtureConfig, {"sources": {"web": 1.0, "books": 0.0}, "with": [own]})
    config = DistillConfig(micro_batch_rows=2)

    def measured(guide: Any, *places: int) -> float:
        losses = losses_of(config, student, teachers[0], tmp_path)
        losses._teacher = guide
        setting = on_own_text(Setting({"soft": 0.8, "hard": 0.2}, 1.0))
        return losses.measure(losses.share(rows.take(np.array(places))), setting)["kl"]

    both = measured(SeveralTeachers(mixture, live, blocks=False), 0, 1, 2, 3, 4)
    web, books = measured(live[0], 0, 2), measured(live[1], 1, 3, 4)
    assert both == pytest.approx((15 * web + 8 * books) / 23, rel=1e-5)
    assert measured(live[1], 0, 2) != pytest.approx(web, rel=1e-3)


def test_a_run_with_several_teachers(world: World, options: Options) -> None:
    """One that counts nothing changes no bit, and one that counts does."""
    other = save_tiny_model(world.root / "other", "llama", seed=5, scale=0.1, num_hidden_layers=2)
    for name, weight in (("without", None), ("nothing", 0.0), ("half", 1.0)):
        given = {"with": [{"model": str(other), "weight": weight}]}
        mixture = None if weight is None else build_from(MixtureConfig, given)
        result = world.run(name, options(on_policy=OWN, mixture=mixture))
        assert result.on_policy is not None
        assert result.on_policy["tokens"] > 0
    assert weights(world, "nothing") == weights(world, "without") != weights(world, "half")
    assert "taught by" in result.describe()
    assert "on-policy: " in result.describe()


def test_the_record_counts_what_was_written(world: World, options: Options) -> None:
    config = options(on_policy=dataclasses.replace(OWN, fraction=1.0))
    result = world.run("run", config)
    steps = [row for row in world.metrics("run") if "on_policy" in row]
    assert result.on_policy is not None
    found = {
        name: sum(row[column] for row in steps) for name, column in (("tokens", "rollout_tokens"), ("ended", "ended"))
    }
    assert found == {name: result.on_policy[name] for name in found}
    assert (result.on_policy["steps"], result.on_policy["rollouts"]) == (8, 32)
    learned = result.on_policy["tokens"] + result.on_policy["prompt_tokens"]
    assert result.on_policy["prompt_tokens"] == 8 * 32
    assert result.tokens_per_s == pytest.approx(learned / result.seconds, rel=2e-2)
    assert result.tokens == 8 * 4 * SEQ_LEN
    assert "on-policy: 32 rollouts in 8 steps" in result.describe()


def test_a_student_that_only_ends_texts_is_told_so(world: World, options: Options) -> None:
    model = load(world.student)
    with torch.no_grad():  # whatever it reads, its last state is in the direction of EOS
        model.transformer.wte.weight[EOS] *= 9
        model.transformer.ln_f.weight.zero_()
        model.transformer.ln_f.bias.copy_(model.transformer.wte.weight[EOS])
    model.save_pretrained(world.root / "ends")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (world.root / "ends" / name).write_bytes((world.student / name).read_bytes())
    config = options(tokens=16 * 2 * SEQ_LEN, batch_tokens=2 * SEQ_LEN, lr=1e-6)
    config = dataclasses.replace(config, on_policy=dataclasses.replace(OWN, fraction=1.0))
    with pytest.raises(CompressError, match=r"ended each of its 2 rollouts at once.*Train it on the text first"):
        world.run("run", config, student=world.root / "ends")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"balance": "level"}, "balance: level goes by the loss on labels"),
        ({"self_correct": 0.2}, "self_correct takes the label for right"),
        ({"select": {"of": "tokens", "to": 0.5}}, "select: {of: tokens} takes tokens of the data"),
        ({"compile": True}, "compile: true makes a graph"),
        ({"on_policy": {"new_tokens": {"from": 9, "to": 8}}}, "`from` is at most `to`"),
        ({"on_policy": {"fraction": 1.1}}, "fraction"),
    ],
)
def test_options_that_do_not_go_together_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        build_from(DistillConfig, {"on_policy": {}, **changes})


def test_what_has_no_teacher_or_no_room_is_refused_before_anything_is_made(world: World, options: Options) -> None:
    with pytest.raises(UsageError, match="learns what a teacher says of the student's text: name one"):
        world.run("run", options(alpha=0.0, on_policy=OWN), teacher=None)
    long = dataclasses.replace(OWN, prompt_tokens=SEQ_LEN - 15)
    with pytest.raises(
        UsageError, match="prompts of 17 tokens and rollouts of 16 are longer than the data's rows of 32"
    ):
        world.run("run", options(on_policy=long))
    with pytest.raises(UsageError, match="lets the student write with whole weights"):
        resolve_sharding(options(on_policy=OWN, shard="both"), processes=2)
    assert not (world.root / "run" / "train").exists()


def test_verify_knows_which_steps_are_on_policy(world: World, options: Options) -> None:
    world.run("run", options(on_policy=OWN))
    training = Training(world.root / "run" / "student", world.root / "run" / "train")
    store, log = TokenStore.open(world.data), training.work / "metrics.jsonl"
    assert "8 logged steps in order" in check_metrics(training, store)
    log.write_text(log.read_text().replace('"on_policy": 0', '"on_policy": 1', 1))
    with pytest.raises(InputError, match="says on_policy = 1, which by its seed is 0"):
        check_metrics(training, store)


def test_the_plan_counts_writing_and_its_cache(options: Options) -> None:
    """FLOPs of half the rows at their new length, and of a forward pass more; bytes of keys and values by hand."""
    own = OnPolicyConfig(fraction=0.5, prompt_tokens=8, new_tokens=Growth(from_=4, to=16), batch_tokens=72)
    student, teacher = (tiny_config(num_hidden_layers=layers) for layers in (1, 2))
    models = {"student": student, "teacher": teacher, "num_rows": 100, "seq_len": SEQ_LEN}
    without = plan_distill(options(precision="fp32"), **models)
    found = plan_distill(options(precision="fp32", on_policy=own), **models)
    assert found.rollouts is not None
    forward = measuring_flops_per_token(student, None, 24)
    assert found.flops == without.flops / 2 + 16 * 24 * (found.flops_per_token + forward)
    # 3 of 4 rows at once: keys and values of one layer with two heads of width 8, and 257 logits in 32 bytes each
    assert found.rollouts.memory_bytes == 3 * (24 * 2 * 2 * 8 * 4 + 257 * 32)
    assert "50% of the steps" in found.rollouts.describe()
    assert "at most 4, later 16 tokens after 8" in found.rollouts.describe()
