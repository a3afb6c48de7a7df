"""Importance of layers: planted redundancy, exhaustive search, and a float64 reference from full activations."""

import itertools
import json
import math
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from helpers import run_cli, save_tiny_model
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from compress.base.config import build_from
from compress.base.currency import changes
from compress.base.errors import InputError, UsageError
from compress.base.machine import Memory
from compress.data import DataConfig, prepare
from compress.inference.likelihood import likely_tokens, token_divergences
from compress.model.files import model_fingerprint
from compress.prune import (
    PruneConfig,
    Ranking,
    RankingConfig,
    RepairConfig,
    forecast,
    plan_prune,
    prune,
    prune_inputs,
    prune_settings,
)
from compress.prune.choose import calibration, ranking
from compress.prune.choose.race import Race
from compress.prune.parts import Method
from compress.prune.plan import derive
from compress.prune.student import _rank

LAYERS = 6
PLANTED = (1, 4)
TOKENS, ROW = 512, 64
MEASURED = ("block-influence", "angular", "perplexity", "perplexity-greedy", "kl-greedy", "taylor", "magnitude")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random teacher, one with two blocks that do nothing, one with two such in a row, and some text."""
    folder = tmp_path_factory.mktemp("ranking")
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefgh", k=rng.randint(2, 7))) for _ in range(50)]
    lines = [json.dumps({"text": " ".join(rng.choices(words, k=9))}) for _ in range(70)]
    (folder / "text.jsonl").write_text("\n".join(lines) + "\n")
    save_tiny_model(folder / "teacher", num_hidden_layers=LAYERS)
    for name, layers in (("planted", PLANTED), ("planted-row", (3, 4))):
        plant(save_tiny_model(folder / name, num_hidden_layers=LAYERS, scale=0.05), layers, text_rows(folder))
    return folder


def plant(folder: Path, layers: tuple[int, ...], rows: Tensor) -> None:
    """Let these blocks return their input (zero output projections) and train the others until each is needed."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    idle = {
        w for i in layers for b in [model.model.layers[i]] for w in (b.self_attn.o_proj.weight, b.mlp.down_proj.weight)
    }
    for weight in idle:
        torch.nn.init.zeros_(weight).requires_grad_(False)
    optimizer = torch.optim.Adam([w for w in model.parameters() if w.requires_grad], lr=5e-3)
    for _ in range(60):
        optimizer.zero_grad()
        model(rows, labels=rows).loss.backward()
        optimizer.step()
    model.save_pretrained(folder)


def rank(teacher: Path, by: Any, layers: int, **options: Any) -> Ranking:
    settings = {"calibration_tokens": TOKENS, "calibration_seq_len": ROW, **options}
    config = RankingConfig(by=by, layers=layers, calibration=str(teacher.parent / "text.jsonl"), **settings)
    return _rank(config, str(teacher), teacher, derive(str(teacher), teacher, ":"))


def text_rows(place: Path) -> Tensor:
    """The rows that measuring reads, made by the tokenizer alone: short documents joined by EOS (id 256)."""
    tokenizer = AutoTokenizer.from_pretrained(place / "teacher")
    texts = [json.loads(line)["text"] for line in (place / "text.jsonl").read_text().splitlines()]
    ids = [token for text in texts for token in (*tokenizer(text)["input_ids"], 256)]
    return torch.tensor(ids[:TOKENS]).reshape(-1, ROW)


def hf_loss(folder: Path, rows: Tensor) -> float:
    """Mean next-token loss, as transformers computes it from labels."""
    with torch.no_grad():
        return float(AutoModelForCausalLM.from_pretrained(folder)(rows, labels=rows).loss)


@pytest.mark.parametrize("by", MEASURED)
def test_blocks_that_do_nothing_go_first(place: Path, by: str) -> None:
    teacher, planted = (place / "planted-row", (3, 4)) if by == "angular" else (place / "planted", PLANTED)
    found = rank(teacher, by, LAYERS - 2)
    assert found.method == by
    assert tuple(set(range(LAYERS)) - set(found.kept_layers)) == planted
    scores = found.scores
    assert max(scores[i] for i in planted) < min(score for i, score in enumerate(scores) if i not in planted)
    if by not in ("magnitude", "angular"):
        assert [scores[i] for i in planted] == pytest.approx([0, 0], abs=1e-9)


def test_influence_and_angles_equal_a_float64_reference_from_all_activations(place: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(place / "teacher").double()
    last: list[Tensor] = []
    model.model.layers[-1].register_forward_hook(lambda module, args, output: last.append(output))
    with torch.no_grad():
        states = list(model(text_rows(place), output_hidden_states=True).hidden_states)
    states[-1] = last[0]  # transformers' own last entry is after the final norm
    assert all(state.dtype == torch.float64 for state in states)

    def cosine(low: int, high: int) -> Tensor:
        return torch.nn.functional.cosine_similarity(states[low], states[high], dim=-1)

    influence = rank(place / "teacher", "block-influence", 4, batch_tokens=3 * ROW)
    assert influence.scores == pytest.approx([1 - cosine(i, i + 1).mean().item() for i in range(LAYERS)], abs=1e-6)
    angular = rank(place / "teacher", "angular", 4, batch_tokens=3 * ROW)
    alone = [cosine(i, i + 1)[:, -1].arccos().mean().item() / math.pi for i in range(LAYERS)]
    assert angular.scores == pytest.approx(alone, abs=1e-6)
    spans = [cosine(i, i + 2)[:, -1].arccos().mean().item() / math.pi for i in range(LAYERS - 1)]
    assert angular.details["spans"] == pytest.approx(spans, abs=1e-6)
    start = min(range(LAYERS - 2), key=spans.__getitem__)
    assert angular.kept_layers == tuple(i for i in range(LAYERS) if not start <= i < start + 2)


def test_perplexity_agrees_with_exhaustive_search_over_real_students(place: Path, tmp_path: Path) -> None:
    rows = text_rows(place)
    losses: dict[tuple[int, ...], float] = {(): hf_loss(place / "teacher", rows)}
    for dropped in [(i,) for i in range(LAYERS)] + list(itertools.combinations(range(LAYERS - 1), 2)):
        kept = ",".join(str(i) for i in range(LAYERS) if i not in dropped)
        losses[dropped] = hf_loss(
            prune(place / "teacher", tmp_path / "-".join(map(str, dropped)), kept, check=False).out, rows
        )
    one = rank(place / "teacher", "perplexity", LAYERS - 1, batch_tokens=3 * ROW)
    assert one.details["reuses_prefix"]
    assert one.details["loss_nats"] == pytest.approx(losses[()], abs=1e-5)
    assert one.details["loss_nats_without"] == pytest.approx([losses[(i,)] for i in range(LAYERS)], abs=1e-5)
    best = min(range(LAYERS - 1), key=lambda i: losses[(i,)])
    assert set(range(LAYERS)) - set(one.kept_layers) == {best}
    two = rank(place / "teacher", "perplexity-greedy", LAYERS - 2)
    second = min((pair for pair in losses if len(pair) == 2 and best in pair), key=losses.__getitem__)
    assert set(range(LAYERS)) - set(two.kept_layers) == set(second)
    assert [step["loss_nats"] for step in two.details["steps"]] == pytest.approx(
        [losses[(best,)], losses[second]], abs=1e-5
    )


def test_the_searches_find_the_best_of_all_cuts_when_two_blocks_do_nothing(place: Path, tmp_path: Path) -> None:
    """Every pair, and every three of which the last layer is none, is cut out and the student's loss measured."""
    rows, losses = text_rows(place), {}
    cuts = [*itertools.combinations(range(LAYERS), 2), *itertools.combinations(range(LAYERS - 1), 3)]
    for cut in cuts:
        kept = ",".join(str(i) for i in range(LAYERS) if i not in cut)
        losses[cut] = hf_loss(prune(place / "planted", tmp_path / "-".join(map(str, cut)), kept, check=False).out, rows)

    def best(count: int) -> tuple[int, ...]:
        return min((cut for cut in cuts if len(cut) == count), key=losses.__getitem__)

    def dropped(by: str, count: int) -> tuple[int, ...]:
        kept = rank(place / "planted", by, LAYERS - count).kept_layers
        return tuple(i for i in range(LAYERS) if i not in kept)

    assert best(2) == PLANTED
    assert dropped("perplexity", 2) == dropped("perplexity-greedy", 2) == best(2)
    assert dropped("perplexity-greedy", 3) == best(3)
    found = rank(place / "planted", "perplexity-greedy", LAYERS - 2)
    assert [step["loss_nats"] for step in found.details["steps"]] == pytest.approx(
        [found.details["loss_nats"]] * 2, abs=1e-9
    )


@pytest.mark.parametrize(("teacher", "layers"), [("planted", PLANTED), ("planted-row", (3, 4))])
def test_dropping_blocks_that_do_nothing_changes_no_logit(
    place: Path, tmp_path: Path, teacher: str, layers: tuple[int, ...]
) -> None:
    kept = ",".join(str(i) for i in range(LAYERS) if i not in layers)
    models = [
        AutoModelForCausalLM.from_pretrained(folder)
        for folder in (place / teacher, prune(place / teacher, tmp_path / "student", kept, check=False).out)
    ]
    with torch.no_grad():
        whole, cut = (model(text_rows(place)).logits for model in models)
    assert float((whole - cut).abs().max()) < 1e-5
    assert float(whole.abs().max()) > 1


def test_greedy_on_no_more_text_than_it_takes_drops_what_losses_in_float64_on_all_of_it_say(
    place: Path,
) -> None:
    model, rows = AutoModelForCausalLM.from_pretrained(place / "planted").double(), text_rows(place)
    layers, dropped = list(model.model.layers), list[int]()

    def loss(without: list[int]) -> float:
        model.model.layers = torch.nn.ModuleList(layer for i, layer in enumerate(layers) if i not in without)
        with torch.no_grad():
            return float(model(rows, labels=rows, use_cache=False).loss)

    while len(dropped) < 3:
        rest = [i for i in range(LAYERS - 1) if i not in dropped]
        dropped.append(min(rest, key=lambda i: (round(loss([*dropped, i]), 9), -i)))
    details = rank(place / "planted", "perplexity-greedy", LAYERS - 3).details
    assert [step["dropped"] for step in details["steps"]] == dropped
    assert details["steps"][0]["heats"][0] == LAYERS
    assert any(step["heats"][-1] < step["heats"][0] for step in details["steps"])
    for step, without in zip(details["steps"], (dropped[:1], dropped[:2], dropped), strict=True):
        if step["tokens"] == rows.numel() - len(rows):
            assert step["loss_nats"] == pytest.approx(loss(without), abs=1e-5)


def test_kl_greedy_drops_what_is_least_missed_by_a_float64_kl(place: Path) -> None:
    """On a teacher whose losses are far apart, and with fewer words than are kept apart: the KL is the whole one's."""
    rows = text_rows(place)
    model: Any = AutoModelForCausalLM.from_pretrained(place / "planted").double()
    layers, dropped = list(model.model.layers), list[int]()

    def log_p(without: list[int]) -> Tensor:
        model.model.layers = torch.nn.ModuleList(layer for i, layer in enumerate(layers) if i not in without)
        with torch.no_grad():
            return model(rows, use_cache=False).logits[:, :-1].log_softmax(dim=-1)

    whole = log_p([])

    def divergence(without: list[int], count: int | None = None) -> float:
        kl = (whole.exp() * (whole - log_p(without))).sum(dim=-1)
        return float(kl.flatten()[:count].mean())

    while len(dropped) < 3:
        rest = [i for i in range(LAYERS - 1) if i not in dropped]
        dropped.append(min(rest, key=lambda i: (round(divergence([*dropped, i]), 9), -i)))
    details = rank(place / "planted", "kl-greedy", LAYERS - 3).details
    assert {step["dropped"] for step in details["steps"][:2]} == set(PLANTED)
    assert [step["dropped"] for step in details["steps"]][2] == dropped[2]
    assert [step["kl_nats"] for step in details["steps"]][:2] == pytest.approx([0, 0], abs=1e-5)
    if details["steps"][2]["tokens"] == rows.numel() - len(rows):
        assert details["steps"][2]["kl_nats"] == pytest.approx(divergence(dropped), rel=0.02)


def test_the_divergence_with_a_rest_is_that_of_the_merged_words() -> None:
    """By its definition in float64, and never above that of all words; equal where all are told apart."""
    generator = torch.Generator().manual_seed(0)
    logits = [3 * torch.randn(5, 40, generator=generator) for _ in range(2)]
    p, q = (each.double().softmax(dim=-1) for each in logits)
    kl = (p * (p / q).log()).sum(dim=-1)
    for count in (1, 7, 39, 40):
        found = divergence_of(*logits, count)
        top = p.topk(count, dim=-1).indices
        merged = [torch.cat([each.gather(-1, top), 1 - each.gather(-1, top).sum(-1, True)], -1) for each in (p, q)]
        merged = [each.clamp(min=math.exp(-50)) for each in merged]
        assert torch.allclose(found, (merged[0] * (merged[0] / merged[1]).log()).sum(dim=-1), atol=1e-6)
        assert (found <= kl + 1e-5).all()
    assert torch.allclose(found, kl, atol=1e-4)


def divergence_of(reference: Tensor, logits: Tensor, count: int) -> Tensor:
    """`token_divergences` of a model whose states are its logits, on one row."""
    ids = torch.zeros(1, len(logits) + 1, dtype=torch.long)

    def readout(table: Tensor) -> Any:
        padded = torch.cat([table, table[:1]])[None]
        return SimpleNamespace(vocab_size=table.shape[1], states=lambda _: padded, logits=lambda states: states)

    return token_divergences(readout(logits), ids, likely_tokens(readout(reference), ids, count))


def test_only_what_is_plainly_worse_than_the_best_is_given_up() -> None:
    noise = torch.randn(400, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    race = Race([0, 1, 2, 3])
    shared = 3 + noise.roll(7)  # what a text costs every layer is no difference between them
    race.add(shared, [shared + 0.2 * noise, shared + 1, shared + noise.flip(0), shared], [0, 1, 2, 3])
    assert race.running([0, 1, 2, 3]) == [0, 2, 3]
    assert race.increase(1) == pytest.approx(1)
    tied = Race([0, 1])
    tied.add(shared, [shared, shared], [0, 1])
    assert (tied.best([0, 1]), tied.running([0, 1])) == (1, [0, 1])


@pytest.mark.parametrize(("by", "cpu", "cuda"), [("perplexity-greedy", 4096, 32_768), ("taylor", 32_768, 256_000)])
def test_how_much_text_is_read_depends_on_measure_and_device_unless_it_is_named(by: Any, cpu: int, cuda: int) -> None:
    config = RankingConfig(by=by, layers=2)
    assert (config.amount("cpu").tokens, config.amount("cuda").tokens) == (cpu, cuda)
    assert RankingConfig(by=by, layers=2, calibration_tokens=99, calibration_seq_len=7).amount("cpu") == (99, 7)
    assert RepairConfig(calibration_tokens=99).amount == (65_536, 512)
    assert RepairConfig(repair_tokens=99).amount.tokens == 99


@pytest.mark.parametrize("by", ["block-influence", "perplexity", "perplexity-greedy"])
def test_how_long_it_takes_is_said_before_it_is_spent_with_the_option_that_changes_it(
    place: Path, by: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(forecast, "_WORTH_SAYING_S", 0)
    rank(place / "teacher", by, 4)
    assert f"Measuring {by} on 512 tokens takes about " in capsys.readouterr().err
    monkeypatch.undo()
    rank(place / "teacher", by, 4)
    assert "takes about" not in capsys.readouterr().err


def test_taylor_and_magnitude_equal_sums_over_the_models_own_matrices(place: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(place / "teacher").double()
    rows = text_rows(place)
    model(rows, labels=rows).loss.backward()
    matrices = [[w for w in layer.parameters() if w.ndim == 2] for layer in model.model.layers]
    expected = [sum((w * w.grad).abs().sum().item() for w in block) for block in matrices]
    assert rank(place / "teacher", "taylor", 3).scores == pytest.approx(expected, rel=1e-4)
    expected = [sum(w.abs().sum().item() for w in block) for block in matrices]
    assert rank(place / "teacher", "magnitude", 3).scores == pytest.approx(expected, rel=1e-9)


def test_random_is_seeded_and_reads_no_text(place: Path) -> None:
    draws = [rank(place / "teacher", "random", 3, seed=seed).kept_layers for seed in (0, 0, 1, 2, 3)]
    assert draws[0] == draws[1]
    assert len(set(draws)) > 1
    assert all(len(kept) == 3 and kept[-1] == LAYERS - 1 for kept in draws)


def test_the_last_layer_always_stays_and_the_deeper_of_equals_goes() -> None:
    assert ranking.least([3.0, 1.0, 2.0, 0.0], 2) == {1, 2}
    assert ranking.least([1.0, 1.0, 1.0, 1.0], 2) == {1, 2}
    assert ranking.flattest_span([0.3, 0.2, 0.2, 0.1], 2) == {2, 3}
    assert ranking.flattest_span([0.0, 0.0], 0) == set()


@pytest.mark.parametrize(
    ("model_type", "fields"),
    [
        ("gpt2", {"num_hidden_layers": 3, "n_positions": 256}),
        ("openai-gpt", {"num_hidden_layers": 3, "n_positions": 256}),
        ("bloom", {"num_hidden_layers": 3}),
        ("gemma2", {"num_hidden_layers": 3, "head_dim": 8, "sliding_window": 16}),
        ("opt", {"num_hidden_layers": 3, "ffn_dim": 64, "word_embed_proj_dim": 32}),
    ],
)
def test_other_stacks_are_measured_as_well(
    place: Path, tmp_path: Path, model_type: str, fields: dict[str, Any]
) -> None:
    teacher = save_tiny_model(tmp_path / model_type, model_type, **fields)
    (tmp_path / "text.jsonl").symlink_to(place / "text.jsonl")
    rows = text_rows(place)
    found = rank(teacher, "perplexity", 2)
    assert found.details["loss_nats"] == pytest.approx(hf_loss(teacher, rows), abs=1e-4)
    for layer in range(2):
        student = prune(teacher, tmp_path / f"without-{layer}", "1,2" if layer == 0 else "0,2").out
        assert found.details["loss_nats_without"][layer] == pytest.approx(hf_loss(student, rows), abs=1e-4)
    assert all(0 < score < 2 for score in rank(teacher, "block-influence", 2).scores)
    assert all(score > 0 for score in rank(teacher, "taylor", 2).scores)


def test_a_model_whose_blocks_share_more_than_the_state_is_run_in_full(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = rank(place / "teacher", "perplexity", 3)
    monkeypatch.setattr(torch, "equal", lambda left, right: False)
    in_full = rank(place / "teacher", "perplexity", 3)
    assert (whole.details["reuses_prefix"], in_full.details["reuses_prefix"]) == (True, False)
    assert whole.details["loss_nats_without"] == in_full.details["loss_nats_without"]


def test_a_token_store_gives_its_training_rows(place: Path, tmp_path: Path) -> None:
    text = str(place / "text.jsonl")
    data = DataConfig(dataset=text, seq_len=32, heldout_sequences=2)
    store = prepare(data, place / "teacher", tmp_path / "data", visible=False)
    config = RankingConfig(by="angular", layers=3, calibration=str(tmp_path / "data"), calibration_tokens=100)
    found = calibration.load_calibration(config, place / "teacher", config.amount("cpu"))
    assert found.rows.tolist() == store.batch(0, 3, seed=0).tolist()
    assert found.fingerprint == {"store": store.fingerprint}
    other = save_tiny_model(tmp_path / "other", max_position_embeddings=16)
    with pytest.raises(InputError, match=r"32 tokens, and .* reads at most 16"):
        calibration.load_calibration(config, other, config.amount("cpu"))


def test_two_cuts_by_measure_give_the_same_student_and_record(place: Path, tmp_path: Path) -> None:
    config = RankingConfig(by="block-influence", layers=3, calibration=str(place / "text.jsonl"))
    first, second = (prune(place / "teacher", tmp_path / name, config) for name in ("a", "b"))
    for result in (first, second):
        result.record.pop("manifest")
        result.record["ranking"].pop("seconds")
    assert first.record == second.record
    record = json.loads((tmp_path / "a" / "prune.json").read_text())
    assert (record["method"], len(record["scores"]), record["keep"]) == ("block-influence", LAYERS, record["keep"])
    assert record["ranking"]["calibration"]["tokens"] <= 256_000
    reads = prune_inputs(lambda: model_fingerprint(place / "teacher"), config)
    asked = {"kind": PruneConfig, "config": prune_settings(config, check=True)}
    inputs = {role: find() for role, find in reads.items()}
    assert changes(tmp_path / "a", record["manifest"], inputs=inputs, **asked) == []
    other = {**inputs, "calibration": {"files": "other"}}
    assert changes(tmp_path / "a", record["manifest"], inputs=other, **asked) == ["the calibration is another"]


def test_what_cannot_be_measured_is_refused(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = place / "teacher"
    for config, says in (
        (RankingConfig(by="angular", layers=3), "--calibration SOURCE"),
        (RankingConfig(by="random", layers=LAYERS + 1), "has 6 layers"),
    ):
        with pytest.raises(UsageError, match=says):
            prune(teacher, tmp_path / "out", config)
    with pytest.raises(InputError, match="absent"):
        prune(teacher, tmp_path / "out", RankingConfig(by="taylor", layers=3, calibration=str(tmp_path / "absent")))
    monkeypatch.setattr(ranking, "host_memory", lambda: Memory(1000, 1000))
    with pytest.raises(InputError, match="1000 B are free"):
        rank(teacher, "taylor", 3)
    assert list(tmp_path.iterdir()) == []


def test_recipes_name_layers_or_measure_them() -> None:
    assert PruneConfig().choice == "alternate"
    measured = build_from(PruneConfig, {"layers": 4, "by": "angular", "calibration_tokens": "64k"}, "a recipe").choice
    assert isinstance(measured, RankingConfig)
    assert (measured.layers, measured.by, measured.calibration_tokens) == (4, "angular", 64_000)
    for wrong in ({"layers": 4}, {"by": "random"}, {"keep": "1::2", "layers": 4, "by": "random"}, {"by": "x"}):
        with pytest.raises(UsageError):
            build_from(PruneConfig, wrong, "a recipe")
    assert set(get_args(Method)) == {*MEASURED, "random"}


def test_a_plan_by_measure_says_that_the_layers_are_not_known(place: Path) -> None:
    plan = plan_prune(str(place / "teacher"), RankingConfig(by="taylor", layers=2))
    assert plan.params_after < plan.params_before
    assert "chosen by taylor" in plan.notes[0]


def test_the_command_line_measures_and_cuts(place: Path, tmp_path: Path) -> None:
    flags = ["--layers", "4", "--by", "perplexity", "--calibration", str(place / "text.jsonl")]
    done = run_cli(
        "prune", str(place / "planted"), str(tmp_path / "out"), *flags, "--calibration-tokens", "1k", "--json"
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert tuple(record["dropped_layers"]) == PLANTED
    assert record["ranking"]["calibration"]["tokens"] == 768  # three rows of 256
    done = run_cli("prune", str(place / "teacher"), str(tmp_path / "other"), "--layers", "4")
    assert done.returncode == 2
    assert "go together" in done.stderr
