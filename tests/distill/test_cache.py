"""A cache of the teacher: it holds what the model says, a training from it is the live one, and damage is refused."""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import warm
from distill_world import MANY_TERMS, SEQ_LEN, World
from fault_injection import Fault, FullDisk, Signal
from helpers import save_tiny_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from compress.base.errors import InputError, InterruptedRun, UsageError
from compress.data import DataConfig, TokenStore, prepare
from compress.distill import CacheConfig, DistillConfig, opening
from compress.distill.loop.progress import Progress
from compress.distill.teachers import caching, row_files
from compress.distill.teachers.cache import TeacherCache
from compress.distill.teachers.caching import make_cache
from compress.distill.teachers.kinds import read_rounded, rounded_rows
from compress.distill.teachers.row_files import RowReader, RowWriter

Options = Callable[..., DistillConfig]
HIDDEN = CacheConfig(kind="hidden")


def cached(world: World, config: DistillConfig, name: str = "cache", kept: CacheConfig = HIDDEN) -> TeacherCache:
    return make_cache(kept, config, teacher=world.teacher, data=world.data, out=world.root / name)


def without_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    """A training that opens the teacher fails from here on."""

    def opened(*_: Any, **__: Any) -> None:
        raise AssertionError("the teacher was opened")

    monkeypatch.setattr(opening, "open_teacher", opened)


def trained(world: World, name: str) -> dict[str, Any]:
    """All that a training left but times: weights, moments, metrics."""
    files = sorted((world.root / name).rglob("*.safetensors"))
    rows = [
        {key: value for key, value in row.items() if key not in ("tokens_per_s", "peak_gib", "mfu")}
        for row in world.metrics(name)
    ]
    return {"metrics": rows, **{str(path.relative_to(world.root / name)): path.read_bytes() for path in files}}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"precision": "bf16"},
        {"document_mask": True, "micro_batch_rows": 3, "divergence": "jensen_shannon", "temperature": 2.0},
        {"alpha": 1.0, "epochs": 2, "tokens": 60 * SEQ_LEN, "self_correct": 0.2},
    ],
    ids=["fp32", "bf16", "documents apart, another divergence", "two epochs, self-corrected"],
)
def test_a_training_from_the_cache_is_the_live_one_bit_for_bit(
    world: World, options: Options, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = options(**changes)
    live = world.run("live", config)
    cache = cached(world, config)
    without_teacher(monkeypatch)
    found = world.run("cached", config, cache=cache.path)
    assert trained(world, "cached") == trained(world, "live")
    assert found.flops < live.flops
    assert found.cache is not None
    assert (found.cache["kind"], live.cache) == ("hidden", None)


def test_it_holds_what_the_model_says_of_each_row(world: World, options: Options) -> None:
    cache, store = cached(world, options()), TokenStore.open(world.data)
    model = AutoModelForCausalLM.from_pretrained(world.teacher, attn_implementation="eager").eval()
    ids = torch.from_numpy(np.concatenate([store.rows(range(store.num_rows)), store.heldout()]))
    with torch.no_grad():
        found = model(ids, output_hidden_states=True)
    states = cache.states(np.arange(len(ids)))
    torch.testing.assert_close(states, found.hidden_states[-1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(cache.head().logits(states), found.logits, rtol=1e-5, atol=1e-5)
    some = np.array([7, 0, len(ids) - 1, 7])
    assert torch.equal(cache.states(some), states[some])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [1, 32, 100])
def test_a_rounded_state_is_off_by_half_a_step_of_its_block(width: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    states = (torch.randn(3, 7, width) * torch.logspace(-4, 4, 7)[:, None]).to(dtype)
    states[0, 0] = 0.0
    rows = rounded_rows(states)
    assert [len(row) for row in rows] == [7 * (width + 2 * -(-width // 32))] * 3
    read = read_rounded(rows, 7, width, dtype)
    assert read.dtype == dtype
    exact, found = states.double().numpy(), read.double().numpy()
    for start in range(0, width, 32):
        block = exact[..., start : start + 32]
        largest = np.abs(block).max(-1, keepdims=True)
        step = np.maximum(largest / 127, 2.0**-24) * (1 + 2.0**-10)
        rounding = np.abs(block) * 2.0 ** (-8 if dtype == torch.bfloat16 else -23)
        # the scale is off by 2^-11 of itself, or by 2^-25 where fp16 has no more digits, times at most 127
        slack = 127 * np.maximum(step * 2.0**-11, 2.0**-25)
        assert (np.abs(found[..., start : start + 32] - block) <= step / 2 + rounding + slack).all()


def test_what_rounding_changes_is_measured_and_refused_above_the_limit(world: World, options: Options) -> None:
    config, kept = options(), CacheConfig(kind="hidden", rows="int8")
    cache, exact = cached(world, config, kept=kept), cached(world, config, "exact")
    store = TokenStore.open(world.data)
    train, heldout = np.arange(store.num_rows), store.num_rows + np.arange(store.num_heldout)
    assert torch.equal(cache.states(heldout), exact.states(heldout))
    assert not torch.equal(cache.states(train), exact.states(train))
    read = read_rounded(rounded_rows(exact.states(heldout)), SEQ_LEN, exact.index["width"], torch.float32)
    p, q = (exact.head().logits(each[:, :-1]).double().log_softmax(-1) for each in (exact.states(heldout), read))
    kl = (p.exp() * (p - q)).sum(-1).mean()
    assert cache.rounding_kl == pytest.approx(float(kl), rel=1e-2, abs=1e-8)
    live, found = world.run("live", config), world.run("rounded", config, cache=cache.path)
    assert found.heldout_kl == pytest.approx(live.heldout_kl, rel=0.02)
    assert found.cache is not None
    assert found.cache["rounding_kl"] == cache.rounding_kl
    assert "in 8 bits (" in cache.text()
    with pytest.raises(UsageError, match=r"rows: int8 changes the teacher by .* more than distill.teacher_max_kl"):
        cached(world, options(teacher_max_kl=1e-12), "refused", kept)


@pytest.mark.faults(1, 8)
@pytest.mark.parametrize("every", [0.0, 1e9], ids=["saved after each batch", "never saved"])
def test_a_pass_that_is_killed_or_stopped_leaves_the_bytes_of_one_that_was_not(
    world: World, options: Options, every: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caching, "SAVE_EVERY_S", every)
    monkeypatch.setattr(row_files, "SHARD_BYTES", 3 * SEQ_LEN * 32 * 4)
    config = options(micro_batch_rows=2)
    whole = cached(world, config, "whole")
    assert len(whole.index["shards"]) > 3
    write, run, stop = RowWriter.append, [0], [signal.SIGTERM]

    class Killed(Exception):
        pass

    def cut(self: RowWriter, rows: Any) -> None:
        run[0] += 1
        if run[0] == 4:
            signal.raise_signal(stop[0])
        if run[0] == 9:
            write(self, rows[:1])
            self.close()
            raise Killed
        write(self, rows)

    monkeypatch.setattr(RowWriter, "append", cut)
    with pytest.raises(InterruptedRun, match=r"Stopped by SIGTERM after 8 of .* rows"):
        cached(world, config)
    with pytest.raises(Killed):
        cached(world, config)
    monkeypatch.setattr(RowWriter, "append", write)
    with pytest.raises(UsageError, match=r"made otherwise: precision was .auto. and is .bf16."):
        cached(world, options(precision="bf16"))
    found = cached(world, config)
    assert found.fingerprint == whole.fingerprint
    assert found.index["shards"] == whole.index["shards"]
    for name in found.index["manifest"]["outputs"]:
        assert (found.path / name).read_bytes() == (whole.path / name).read_bytes()
    assert not (world.root / "cache.compress-partial").exists()


@pytest.mark.faults(1, 4)
@pytest.mark.parametrize(
    ("fault", "code", "words"),
    [
        (Signal(at=("compress.distill.teachers.caching:RowWriter.finish",)), -signal.SIGKILL, ""),
        (FullDisk(file_bytes=100_000), 1, "No space left to write"),
    ],
    ids=["killed", "full disk"],
)
def test_the_command_that_was_ended_while_it_wrote_goes_on(
    world: World, options: Options, fault: Fault, code: int, words: str
) -> None:
    command = [
        "cache",
        str(world.teacher),
        str(world.data),
        str(world.root / "cache"),
        "--set=distill.cpu_tuning=false",
    ]
    ended = warm().run([fault], *command)
    assert ended.returncode == code, ended.stderr
    assert words in ended.stderr
    assert not (world.root / "cache").exists()
    done = warm().run((), *command, "--json")
    assert done.returncode == 0, done.stderr
    whole = cached(world, options(), "whole")
    assert json.loads(done.stdout)["fingerprint"] == whole.fingerprint
    again = warm().run((), *command)
    assert again.returncode == 0, again.stderr
    assert "a token" in again.stdout
    refused = warm().run((), *command, "--set=distill.document_mask=true")
    assert refused.returncode == 2
    assert "document_mask was false and is true" in refused.stderr


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=30),
    cuts=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 5)), max_size=4),
    shard=st.integers(1, 100),
)
def test_rows_are_read_as_they_were_written_wherever_writing_was_cut(
    sizes: list[int],
    cuts: list[tuple[int, int]],
    shard: int,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    monkeypatch.setattr(row_files, "SHARD_BYTES", shard)
    draw = np.random.default_rng(0)
    rows = [draw.integers(0, 256, size, dtype=np.uint8) for size in sizes]
    folder = tmp_path_factory.mktemp("rows")
    state: Any = None
    for until, lost in cuts:
        writer = RowWriter(folder, state)
        until = max(until, writer.rows)
        writer.append(rows[writer.rows : until])
        state = writer.save()
        writer.append(rows[writer.rows : until + lost])  # on the disk, and in no record
        writer.close()
    writer = RowWriter(folder, state)
    writer.append(rows[writer.rows :])
    shards = writer.finish()
    files = sorted(path.name for path in folder.glob("*.bin"))
    assert files == [entry["file"] for entry in shards]
    assert b"".join((folder / name).read_bytes() for name in files) == b"".join(row.tobytes() for row in rows)
    reader = RowReader(folder, shards, row_files.sha256_file(folder / row_files.TABLE))
    reader.will_need(range(len(rows)))
    for number in draw.permutation(len(rows)):
        assert np.array_equal(reader.read(int(number)), rows[number])


@pytest.mark.faults(14)
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda cache: flip(cache / "rows-00000.bin", 999), r"rows-00000.bin is damaged: row 0 is not"),
        (lambda cache: cut_off(cache / "rows-00000.bin"), r"rows-00000.bin has \d+ bytes, not \d+"),
        (lambda cache: cut_off(cache / "rows.table"), r"rows.table has \d+ bytes, not \d+"),
        (lambda cache: flip(cache / "rows.table", 3), r"rows.table is not as it was written"),
        (lambda cache: flip(cache / "head.safetensors", -9), r"head.safetensors is not as it was written"),
        (lambda cache: (cache / "head.safetensors").unlink(), r"head.safetensors is missing"),
        (lambda cache: edit(cache / "index.json", width=8), r"index.json was changed after it was written"),
        (lambda cache: edit(cache / "index.json", width="8"), r"index.json is damaged \(width"),
        (lambda cache: edit(cache / "index.json", format="2"), r"is not the index of a teacher's cache"),
        (lambda cache: (cache / "index.json").unlink(), r"is no cache of a teacher"),
    ],
)
def test_a_damaged_cache_is_refused_by_name(
    world: World, options: Options, damage: Callable[[Path], Any], words: str
) -> None:
    config = options(tokens=None)
    cache = cached(world, config)
    damage(cache.path)
    with pytest.raises(InputError, match=words):
        world.run("run", config, cache=cache.path)
    assert not (world.root / "run" / "student").exists()


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def edit(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_a_cache_of_something_else_is_refused(world: World, options: Options, text_file: Path) -> None:
    config = options()
    cache = cached(world, config)
    shutil.copytree(world.teacher, world.root / "other")
    save_tiny_model(world.root / "other", "gpt2", seed=3, scale=0.1, num_hidden_layers=2)
    data = DataConfig(dataset=str(text_file), seq_len=SEQ_LEN, heldout_sequences=6, seed=1)
    prepare(data, tokenizer=world.teacher, out=world.root / "other-data")
    refused = [
        (config, {"teacher": world.root / "other"}, "is of another teacher"),
        (config, {"data": world.root / "other-data"}, "is of another text"),
        (options(precision="bf16"), {}, "precision = fp32, and the training asks for bf16"),
        (options(document_mask=True), {}, "documents kept apart = False, and the training asks for True"),
        (config, {"teacher": None}, "name that too"),
        (options(**MANY_TERMS), {}, "weights.hidden compares with outputs of the teacher's blocks"),
    ]
    for number, (asked, changes, words) in enumerate(refused):
        with pytest.raises(UsageError, match=words):
            world.run(str(number), asked, cache=cache.path, **changes)
        assert not (world.root / str(number) / "student").exists()


def test_a_training_goes_on_with_its_cache_and_with_no_other_source(
    world: World, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = options()
    cache = cached(world, config)
    shutil.copytree(cache.path, world.root / "elsewhere")
    whole = world.run("whole", config, cache=cache.path)
    advance = Progress.advance

    def stopped(self: Progress, row_ids: Any) -> None:
        advance(self, row_ids)
        if self.step == 5:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Progress, "advance", stopped)
    with pytest.raises(InterruptedRun):
        world.run("cut", config, cache=cache.path)
    monkeypatch.setattr(Progress, "advance", advance)
    with pytest.raises(UsageError, match="the cache is another"):
        world.run("cut", config)
    without_teacher(monkeypatch)
    found = world.run("cut", config, cache=world.root / "elsewhere")
    assert found.heldout_kl == whole.heldout_kl
    weights = [(world.root / name / "student" / "model.safetensors").read_bytes() for name in ("whole", "cut")]
    assert weights[0] == weights[1]
    with pytest.raises(UsageError, match="the cache is another"):
        world.run("cut", config)
