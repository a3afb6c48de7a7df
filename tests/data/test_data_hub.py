"""A hub dataset read over a real connection that drops, stalls and refuses: nothing repeated, nothing lost.

The client runs in a process of its own (this file as a script), for the hub's address is read at import.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chat_world import CHATML, chat_tokenizer
from commands import warm
from data_world import data_config, documents, write_source
from loopback_hub import REPOSITORY, Hub, client_environment, serving

from compress.base.signals import StopRequest
from compress.data import TokenStore, prepare
from compress.data.sources import stream

CARD = b"""---
configs:
- config_name: default
  data_files: [{split: train, path: data/*}]
- config_name: first
  data_files: [{split: train, path: data/0.parquet}, {split: test, path: data/1.parquet}]
---
"""
WANTED = {"dataset": f"hub:{REPOSITORY}", "tokens": 90_000}


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    for i in range(3):
        write_source(tmp_path / "data" / f"{i}.parquet", documents(700, i))
    files = {f"data/{path.name}": path.read_bytes() for path in (tmp_path / "data").iterdir()}
    with serving(Hub()) as hub:
        hub.commit({**files, "README.md": CARD})
        yield hub


def client(hub: Hub, tmp_path: Path, tokenizer: Path, *jobs: dict[str, Any]) -> list[dict[str, Any]]:
    """Prepare each of `jobs` (options, `out`) in a process of its own; what came of each."""
    environment = client_environment(hub, tmp_path / "home")
    done = warm().run((), str(tokenizer), json.dumps(jobs), script=Path(__file__), **environment)
    assert done.returncode == 0, done.stderr
    assert "hf_not_a_real_token" not in done.stderr
    results: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return results


def local_fingerprint(tmp_path: Path, tokenizer: Path) -> str:
    config = data_config(tmp_path / "data", tokens=WANTED["tokens"])
    return prepare(config, tokenizer, tmp_path / "local").fingerprint


def test_instructions_by_name(tmp_path: Path) -> None:
    """An array of JSON, as yahma/alpaca-cleaned is."""
    rows = [{"instruction": text, "input": text[:5], "output": text[5:] + "!"} for text in documents(300)]
    chat_tokenizer(CHATML).save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "local.json").write_text(json.dumps(rows))
    config = data_config(tmp_path / "local.json", tokens=9000, seq_len=300)
    local = prepare(config, tmp_path / "tokenizer", tmp_path / "local", visible=False)
    with serving(Hub()) as hub:
        hub.commit({"alpaca_data_cleaned.json": (tmp_path / "local.json").read_bytes()})
        job = {"dataset": REPOSITORY, "tokens": 9000, "seq_len": 300, "out": str(tmp_path / "store")}
        (made,) = client(hub, tmp_path, tmp_path / "tokenizer", job)
    assert made == {"fingerprint": local.fingerprint}
    assert local.index["instructions"]["form"] == "alpaca"


@pytest.mark.faults(12)
def test_a_flaky_hub_gives_the_local_store(tmp_path: Path, tokenizer_folder: Path, hub: Hub) -> None:
    hub.fault_paths = ("/resolve/", "/tree/", "/revision/")
    singles = [fault for kind in (503, "reset", 429, "drop", "stall", 500, 504) for fault in (kind, None, None)]
    outage = ["reset", 502, "drop", 429] * 2  # longer than huggingface_hub itself perseveres
    hub.faults = [*singles, *outage, *[None] * 5, *outage]
    job = {**WANTED, "out": str(tmp_path / "store")}
    (made,) = client(hub, tmp_path, tokenizer_folder, job)
    assert made == {"fingerprint": local_fingerprint(tmp_path, tokenizer_folder)}
    assert hub.faults == []
    store = TokenStore.open(tmp_path / "store")
    assert store.index["source"]["commit"] == hub.main
    assert store.index["skipped"]["damaged_files"] == 0
    hub.requests.clear()
    (again,) = client(hub, tmp_path, tokenizer_folder, job)
    assert again == made
    assert hub.requests == []  # a finished store needs no network


@pytest.mark.faults(12)
def test_an_outage_is_an_error_and_the_next_run_goes_on_at_the_same_commit(
    tmp_path: Path, tokenizer_folder: Path, hub: Hub
) -> None:
    first = hub.main
    hub.fault_paths = ("data/1.parquet",)
    hub.faults = [503] * 1000
    job = {**WANTED, "out": str(tmp_path / "store")}
    (failed,) = client(hub, tmp_path, tokenizer_folder, job)
    assert failed["error"] == "Unavailable"
    assert failed["exit_code"] == 3
    assert "data/1.parquet could not be read in 4 tries" in failed["message"]
    assert "run the same command again" in failed["message"]
    hub.faults = []
    hub.requests.clear()
    hub.commit({"data/0.parquet": b"something else", "README.md": CARD})
    (made,) = client(hub, tmp_path, tokenizer_folder, job)
    assert made == {"fingerprint": local_fingerprint(tmp_path, tokenizer_folder)}
    assert TokenStore.open(tmp_path / "store").index["source"]["commit"] == first
    read = [request for request in hub.requests if "/data/" in request]
    assert read
    assert all(f"/resolve/{first}/" in request for request in read)


def test_configurations_splits_and_what_is_not_there(tmp_path: Path, tokenizer_folder: Path, hub: Hub) -> None:
    small = {"tokens": 1000, "heldout_sequences": 1}
    jobs = [
        {**small, "dataset": f"hub:{REPOSITORY}:first", "split": "test"},
        {**small, "dataset": REPOSITORY, "config": "first", "split": "test"},
        {**small, "dataset": REPOSITORY, "config": "nope"},
        {**small, "dataset": REPOSITORY, "split": "nope"},
        {**small, "dataset": "org/other"},
        {**small, "dataset": REPOSITORY, "text_column": "body"},
    ]
    outs = [str(tmp_path / f"store-{i}") for i in range(len(jobs))]
    results = client(hub, tmp_path, tokenizer_folder, *({**j, "out": o} for j, o in zip(jobs, outs, strict=True)))
    assert not list(tmp_path.glob("*.partial"))
    local = data_config(tmp_path / "data" / "1.parquet", **small)
    expected = {"fingerprint": prepare(local, tokenizer_folder, tmp_path / "local").fingerprint}
    assert results[:2] == [expected, expected]
    for result, error, words in zip(
        results[2:],
        ("UsageError", "UsageError", "InputError", "InputError"),
        (
            "'default', 'first'",
            "no split 'nope'; it has train",
            "is no dataset on the",
            "no column 'body'; it has id, text",
        ),
        strict=True,
    ):
        assert result["error"] == error, result
        assert words in result["message"], result


@pytest.mark.parametrize(("fault", "refused"), [(503, False), ("reset", False), (403, True)])
def test_a_look_ahead_does_not_wait_for_a_hub(
    fault: int | str, refused: bool, tmp_path: Path, tokenizer_folder: Path, hub: Hub
) -> None:
    hub.fault_paths = ("data/0.parquet",)
    hub.faults = [fault] * 1000
    (found,) = client(hub, tmp_path, tokenizer_folder, {**WANTED, "out": str(tmp_path / "x"), "look": True})
    assert found.get("exit_code") == (3 if refused else None)
    assert sum("/data/0.parquet" in request for request in hub.requests) <= 12  # huggingface_hub's own perseverance


@pytest.mark.faults(12)
def test_waits_double_and_begin_anew_after_a_success(monkeypatch: pytest.MonkeyPatch) -> None:
    waited, now = [0.0], [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds
        waited[-1] += seconds

    monkeypatch.setattr(stream.time, "sleep", sleep)
    monkeypatch.setattr(stream.time, "monotonic", lambda: now[0])
    retry = stream.Retry(StopRequest())
    for failures in (3, stream.RETRIES):
        for _ in range(failures):
            waited.append(0.0)
            retry.failed("a file", TimeoutError("no answer"))
        if failures == 3:
            retry.succeeded()
    expected = [2.0**n for n in (*range(3), *range(stream.RETRIES))]
    assert waited[1:] == [pytest.approx(wait, rel=0.2501) for wait in expected]
    with pytest.raises(stream.Unavailable, match=rf"could not be read in {stream.RETRIES + 1} tries.*no answer"):
        retry.failed("a file", TimeoutError("no answer"))
    forbidden = Exception("no")
    forbidden.response = type("Response", (), {"status_code": 403})  # type: ignore[attr-defined]
    with pytest.raises(stream.Unavailable, match="cannot be read"):  # at once: trying again would not help
        stream.Retry(StopRequest()).failed("a file", forbidden)


def main() -> None:
    import time

    from compress.base.errors import CompressError
    from compress.data.preflight import check_source
    from compress.data.sources import hub, stream
    from compress.data.store import preparation

    wait = time.sleep
    time.sleep = lambda seconds: wait(min(seconds, 0.002))
    stream.FIRST_WAIT_S, stream.RETRIES = 0.001, 3
    hub.BLOCK_BYTES = 1500
    stream.BATCH_CHARS, preparation.SAVE_EVERY_S = 5000, 0.0
    results: list[dict[str, Any]] = []
    for job in json.loads(sys.argv[2]):
        out, look = Path(job.pop("out")), job.pop("look", False)
        try:
            if look:
                check_source(data_config(**job))
                results.append({})
                continue
            results.append({"fingerprint": prepare(data_config(**job), sys.argv[1], out).fingerprint})
        except CompressError as error:
            kind = type(error).__name__
            results.append({"error": kind, "message": str(error), "exit_code": error.exit_code})
    print(json.dumps(results))  # noqa: T201


if __name__ == "__main__":
    main()
