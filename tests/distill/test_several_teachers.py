"""Several teachers: their mixture is the formula in float64, each alone is the limit of its weight, and each speaks for
the sources that it is given."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import warm
from distill_world import SEQ_LEN, World, losses_of, setting_of
from divergence_definitions import ALL, divergence_by_definition, name_of
from helpers import save_tiny_model, tiny_config
from safetensors.torch import load_file
from torch import Tensor

from compress.base.config import build_from
from compress.base.disk import sha256_tree
from compress.base.errors import CompressError, InputError, UsageError
from compress.data import DataConfig, TokenStore, prepare
from compress.data.config import SourceConfig
from compress.distill import CacheConfig, DistillConfig, plan_distill
from compress.distill.config import DivergenceConfig, HiddenConfig, Weights, divergence_of
from compress.distill.objective.loss import LossOptions, loss_of_valid
from compress.distill.objective.mixture import Mixture, Voice, mixing_bytes
from compress.distill.objective.signals import Needs
from compress.distill.resources.step_memory import _LiveBytes
from compress.distill.rows.source import StoreRows
from compress.distill.teachers.caching import make_cache
from compress.distill.teachers.config import MixtureConfig
from compress.distill.teachers.several import SeveralTeachers
from compress.distill.teachers.source import LiveTeacher
from compress.model.load import load_model
from compress.model.parts import OutputHead

Options = Callable[..., DistillConfig]
VOCABULARY = 37
HEADS: list[dict[str, Any]] = [{}, {"scale": 0.7, "softcap": 3.0}, {"bias": True}]


def voices_of(count: int, places: int, dtype: torch.dtype) -> tuple[Voice, ...]:
    """Random teachers of different widths and kinds of head, whose weights are other ones at each place."""
    draw = torch.Generator().manual_seed(count)
    weights = torch.rand(places, count, generator=draw, dtype=torch.float64) + 0.05
    weights /= weights.sum(1, keepdim=True)
    found = []
    for number in range(count):
        width, fields = 8 + number, dict(HEADS[number])
        if fields.get("bias"):
            fields["bias"] = torch.randn(VOCABULARY, generator=draw).to(dtype)
        head = OutputHead(torch.randn(VOCABULARY, width, generator=draw).to(dtype), **fields)
        found.append(Voice(torch.randn(places, width, generator=draw).to(dtype), head, weights[:, number]))
    return tuple(found)


def by_formula(voices: tuple[Voice, ...], of: str, temperature: float) -> Tensor:
    """log of the mixture at T in float64, [N, V]."""
    total = torch.zeros(len(voices[0].hidden), VOCABULARY, dtype=torch.float64)
    for hidden, head, weights in voices:
        z = head.scale * (hidden.double() @ head.weight.double().T + (0 if head.bias is None else head.bias.double()))
        z = z if head.softcap is None else head.softcap * torch.tanh(z / head.softcap)
        part = (z / temperature).softmax(-1) if of == "probabilities" else z / temperature
        total += weights[:, None] * part
    return total.log() if of == "probabilities" else total.log_softmax(-1)


def loss_and_gradients(
    voices: tuple[Voice, ...], of: Any, divergence: DivergenceConfig, dtype: torch.dtype, **options: Any
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Soft loss and the gradients of hidden states and head of a student: ours, and autograd's of the formula."""
    places, temperature = len(voices[0].hidden), 1.7
    draw = torch.Generator().manual_seed(9)
    hidden, weight = (torch.randn(n, 8, generator=draw).to(dtype).requires_grad_() for n in (places, VOCABULARY))
    labels = torch.zeros(places, dtype=torch.int64)
    asked = LossOptions(alpha=1.0, temperature=temperature, divergence=divergence_of(divergence), **options)
    found = loss_of_valid(hidden, OutputHead(weight), None, None, labels, asked, mixture=Mixture(voices, of))
    ours = torch.autograd.grad(found.loss, (hidden, weight))
    exact, head = (tensor.detach().double().requires_grad_() for tensor in (hidden, weight))
    each = divergence_by_definition(divergence, by_formula(voices, of, temperature), exact @ head.T / temperature)
    soft = temperature**2 * each.mean()
    return (found.soft, *ours), (soft.detach(), *torch.autograd.grad(soft, (exact, head)))


@pytest.mark.parametrize("divergence", ALL, ids=name_of)
@pytest.mark.parametrize("of", ["probabilities", "logits"])
@pytest.mark.parametrize("count", [2, 3])
def test_the_loss_against_a_mixture_is_the_formulas(count: int, of: str, divergence: DivergenceConfig) -> None:
    """In float64, in chunks that do not divide the places, at T = 1.7: value and gradients."""
    voices = voices_of(count, 23, torch.float64)
    for found, expected in zip(*loss_and_gradients(voices, of, divergence, torch.float64, chunk_tokens=7), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("of", ["probabilities", "logits"])
def test_the_compiled_pass_takes_a_mixture_in_tiles(of: str) -> None:
    """3,000 places in fp32: several tiles of a chunk, and the C++ pass where there is a compiler."""
    voices = voices_of(3, 3000, torch.float32)
    divergence = DivergenceConfig(name="forward_kl")
    for found, expected in zip(*loss_and_gradients(voices, of, divergence, torch.float32), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6, check_dtype=False)


@pytest.mark.parametrize("of", ["probabilities", "logits"])
def test_a_mixture_is_corrected_as_one_teacher(of: Any) -> None:
    """`self_correct` by its definition, of the mixture at T."""
    places, temperature, tau = 23, 1.7, 0.2
    voices, draw = voices_of(2, places, torch.float64), torch.Generator().manual_seed(3)
    hidden, weight = (torch.randn(n, 8, generator=draw, dtype=torch.float64) for n in (places, VOCABULARY))
    p = by_formula(voices, of, temperature).exp()
    labels = torch.where(torch.arange(places) % 2 == 0, p.argmax(-1), 5)
    p_y, (p_max, first) = p.gather(1, labels[:, None]), p.max(-1, keepdim=True)
    wrong = (p_max - p_y + tau) / (1 + p_max - p_y)
    right = ((p_y + tau).clamp(max=1) - p_y) / (1 - p_y)
    m = torch.where(first == labels[:, None], right, wrong).clamp(max=1 - 2**-20)
    corrected = (1 - m) * p + m * torch.nn.functional.one_hot(labels, VOCABULARY)
    log_q = (hidden @ weight.T / temperature).log_softmax(-1)
    expected = temperature**2 * (corrected * (corrected.log() - log_q)).sum(-1).mean()
    divergence = DivergenceConfig(name="forward_kl")
    options = LossOptions(alpha=1.0, temperature=temperature, divergence=divergence, self_correct=tau)
    found = loss_of_valid(hidden, OutputHead(weight), None, None, labels, options, mixture=Mixture(voices, of))
    assert float(found.soft) == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize("of", ["probabilities", "logits"])
def test_no_more_exists_beside_a_chunk_than_is_planned(of: Any) -> None:
    """On tensors without storage: of a chunk of 4,096 tokens, what a few hundred take."""
    with torch.device("meta"):
        head = OutputHead(torch.empty(50_000, 64, dtype=torch.bfloat16), softcap=30.0)
        hidden, weights = torch.empty(4096, 64, dtype=torch.bfloat16), torch.empty(4096)
        out = torch.empty(4096, 50_000, dtype=torch.bfloat16)
    mixture = Mixture((Voice(hidden, head, weights),) * 3, of)
    with _LiveBytes([hidden, weights, out, head.weight]) as live:
        mixture.write_logits(slice(0, 4096), 2.0, out)
    assert live.peak <= mixing_bytes(4096, 50_000) < 4096 * 50_000 * 4


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(
        tmp_path_factory.mktemp("other") / "teacher", "llama", seed=5, scale=0.1, num_hidden_layers=2
    )


def mixture_of(model: Path, **fields: Any) -> MixtureConfig:
    """The run's teacher with another; `fields` are the mixture's, and under `other` the other's."""
    own = {"model": str(model), **fields.pop("other", {})}
    return build_from(MixtureConfig, {**fields, "with": [own]})


@pytest.mark.parametrize("of", ["probabilities", "logits"])
@pytest.mark.parametrize("alone", ["first", "other"])
def test_a_weight_of_0_is_a_run_without_that_teacher(
    alone: str, of: str, world: World, other: Path, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bits, and no forward pass of the other."""
    weights = {"weight": 1.0, "other": {"weight": 0.0}} if alone == "first" else {"weight": 0.0}
    ran = set()

    def forward(self: LiveTeacher, batch: Any) -> Any:
        ran.add(self.model.config.model_type)
        return plain(self, batch)

    plain = LiveTeacher.forward
    monkeypatch.setattr(LiveTeacher, "forward", forward)
    world.run("several", options(mixture=mixture_of(other, of=of, **weights)))
    assert ran == {"gpt2" if alone == "first" else "llama"}
    world.run("one", options(), teacher=world.teacher if alone == "first" else other)
    several, one = (sha256_tree(world.root / name / "student", "*.safetensors") for name in ("several", "one"))
    assert several == one
    logs = [
        [{k: v for k, v in row.items() if "loss" in k or "kl" in k} for row in world.metrics(n)]
        for n in ("several", "one")
    ]
    assert logs[0] == logs[1]


def test_layer_pairs_take_the_first_teacher_even_where_it_counts_nothing(
    world: World, other: Path, options: Options
) -> None:
    """hidden and similarity alone, soft 0: whatever the mixture says, the run is one with the first teacher."""
    terms = {"weights": Weights(soft=0.0, hidden=1.0), "hidden": HiddenConfig(pairs=((0, 1),))}
    world.run("several", options(**terms, mixture=mixture_of(other, weight=0.0)))
    world.run("one", options(**terms))
    several, one = (sha256_tree(world.root / name / "student", "*.safetensors") for name in ("several", "one"))
    assert several == one


def test_each_teacher_speaks_for_its_sources(world: World, other: Path, options: Options) -> None:
    """Of a micro-batch of two sources each row has the signals of the teacher of its source: the loss is the mean of
    those of two runs, each of one teacher on its rows, and a row of a third source hears both by their weights."""
    store = TokenStore.open(world.data)
    batch = StoreRows(store, seed=0, epochs=1, num_heldout=0, apart=False, selection=None).read(np.arange(4))
    mine = {"web": 1.0, "books": 0.0}
    mixture = mixture_of(other, weight=3.0, sources=mine, other={"weight": 1.0, "sources": {"web": 0.0, "books": 1.0}})
    config = options(micro_batch_rows=4)
    student, *teachers = (load_model(path, dtype=torch.float32) for path in (world.student, world.teacher, other))
    live = [LiveTeacher(teacher, Needs(), 257) for teacher in teachers]
    several = SeveralTeachers(mixture, live, blocks=False)

    def measured(rows: list[int], guide: Any, sources: tuple[str, ...] | None = None) -> float:
        losses = losses_of(config, student, teachers[0], world.root)
        losses._teacher = guide
        part = dataclasses.replace(batch.take(np.array(rows)), sources=sources)
        return losses.measure(losses.share(part), setting_of(config))["kl"]

    both = measured([0, 1, 2, 3], several, ("web", "books", "web", "books"))
    web, books = measured([0, 2], live[0]), measured([1, 3], live[1])
    assert both == pytest.approx((web + books) / 2, rel=1e-6)
    assert measured([1, 3], live[0]) != pytest.approx(books, rel=1e-3)

    rows = torch.from_numpy(batch.ids[:1])
    with torch.no_grad():
        q, *p = (model.eval()(rows).logits[0, :-1].double().softmax(-1) for model in (student, *teachers))
    mixed = 0.75 * p[0] + 0.25 * p[1]
    expected = float((mixed * (mixed.log() - q.log())).sum(-1).mean())
    assert measured([0], several, ("elsewhere",)) == pytest.approx(expected, rel=1e-4)


def test_a_cache_of_the_first_teacher_is_the_live_one(world: World, other: Path, options: Options) -> None:
    config = options(mixture=mixture_of(other))
    make_cache(CacheConfig(), config, teacher=world.teacher, data=world.data, out=world.root / "cache")
    world.run("live", config)
    world.run("cached", config, cache=world.root / "cache")
    live, cached = (sha256_tree(world.root / name / "student", "*.safetensors") for name in ("live", "cached"))
    assert live == cached


def test_the_plan_counts_all_teachers(options: Options) -> None:
    configs = {"student": tiny_config(num_hidden_layers=1), "teacher": tiny_config()}
    other = tiny_config(num_hidden_layers=3, hidden_size=64)
    size = {"num_rows": 100, "seq_len": SEQ_LEN, "device": torch.device("cpu")}
    one = plan_distill(options(), **configs, **size)
    both = plan_distill(options(), **configs, **size, others=(other,))
    alone = plan_distill(options(), student=configs["student"], teacher=other, **size)
    assert both.memory_bytes["teacher"] == one.memory_bytes["teacher"] + alone.memory_bytes["teacher"]
    assert both.memory_bytes["signals"] == 4 * SEQ_LEN * 64 * 4
    student = plan_distill(options(alpha=0.0), student=configs["student"], teacher=None, **size).flops
    assert both.flops - student == pytest.approx(one.flops - student + alone.flops - student)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"weight": 0.0, "other": {"weight": 0.0}}, "no teacher has a weight"),
    ({"sources": {"web": 0.0}, "other": {"sources": {"web": 0.0}}}, "no teacher has a weight for rows of 'web'"),
    ({"weight": -1.0}, "weight"),
    ({"of": "states"}, "of"),
]


@pytest.mark.parametrize(("fields", "words"), WRONG)
def test_weights_that_say_nothing_are_refused_when_they_are_read(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        mixture_of(Path("/nowhere"), **dict(fields))


def test_what_cannot_be_mixed_is_refused_before_the_first_step(
    world: World, other: Path, options: Options, tmp_path: Path
) -> None:
    odd = save_tiny_model(tmp_path / "odd", vocab_size=257)
    tokenizer = (odd / "tokenizer.json").read_text()
    (odd / "tokenizer.json").write_text(tokenizer.replace('"<eos>"', '"<end>"'))
    (odd / "tokenizer_config.json").write_text((odd / "tokenizer_config.json").read_text().replace("<eos>", "<end>"))
    with pytest.raises(InputError, match=r"odd \(distill.mixture\) cannot teach this student. .*tokenizers differ"):
        world.run("odd", options(mixture=mixture_of(odd)))
    with pytest.raises(CompressError, match="/nowhere does not exist"):
        world.run("nowhere", options(mixture=mixture_of(Path("/nowhere"))))
    with pytest.raises(UsageError, match="weights for the source 'web', and the text is no blend"):
        world.run("web", options(mixture=mixture_of(other, sources={"web": 1.0})))
    with pytest.raises(UsageError, match="name that too"):
        world.run("none", options(mixture=mixture_of(other), alpha=0.0), teacher=None)
    make_cache(CacheConfig(kind="samples"), options(), teacher=world.teacher, data=world.data, out=world.root / "cache")
    with pytest.raises(UsageError, match="a cache of kind samples does not have"):
        world.run("draws", options(mixture=mixture_of(other)), cache=world.root / "cache")
    assert not list(world.root.glob("*/train"))


@pytest.mark.parametrize("shard", ["none", "both"])
def test_two_processes_with_rows_of_different_teachers_equal_one(
    shard: str, world: World, other: Path, options: Options, text_file: Path
) -> None:
    """A row at a time: while one process hears the one teacher alone, the other may hear the other."""
    reversed_text = world.root / "reversed.jsonl"
    lines = [json.loads(line)["text"][::-1] for line in text_file.read_text().splitlines()]
    reversed_text.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    sources = tuple(SourceConfig(dataset=str(path), name=path.stem) for path in (text_file, reversed_text))
    data = DataConfig(sources=sources, tokens=60 * SEQ_LEN, seq_len=SEQ_LEN, heldout_sequences=6)
    prepare(data, world.teacher, world.root / "data")
    mixture = mixture_of(other, sources={"reversed": 0.0}, other={"sources": {"text": 0.0}})
    student = save_tiny_model(world.root / "student", scale=0.1, num_hidden_layers=2)
    world = dataclasses.replace(world, data=world.root / "data", student=student)
    config = options(micro_batch_rows=1, mixture=mixture)
    world.run("one", config)
    done = warm().launch(2, *world.command("two", dataclasses.replace(config, shard=shard)))
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (load_file(world.root / name / "student" / "model.safetensors") for name in ("one", "two"))
    for key in one:
        torch.testing.assert_close(two[key], one[key], rtol=1e-4, atol=2e-5)
    logs = [world.metrics(name)[-1] for name in ("one", "two")]
    for key in ("heldout_kl", "heldout_kl/text", "heldout_kl/reversed"):
        assert logs[1][key] == pytest.approx(logs[0][key], rel=1e-4)
