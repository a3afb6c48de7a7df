"""A token in the environment is in nothing that a run prints or writes, even when what fails says it aloud."""

import json
from pathlib import Path

import pytest
from commands import Commands
from fault_injection import Crash, Setting
from loopback_hub import REPOSITORY, Hub, serving

from compress.base.redact import redact

TOKEN = "hf_" + "NotARealToken" * 3
SECRETS = {"HF_TOKEN": TOKEN, "WANDB_API_KEY": "not-a-real-key-either"}


def places(out: Path, said: str, secret: str) -> list[str]:
    """Where a secret is found: files of a run, or what was printed."""
    found = [str(path) for path in out.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]
    return found + ["what was printed"] * (secret in said)


@pytest.mark.faults(25)
@pytest.mark.parametrize("debug", [(), ("--debug",)])
@pytest.mark.parametrize("at", ["compress.distill.loop.train:learning_rate", "compress.run.pipeline:write_report"])
def test_a_crash_that_says_the_token(
    commands: Commands, recipe: Path, tmp_path: Path, debug: tuple[str, ...], at: str
) -> None:
    crash = Crash(at=(at,), message="refused: Authorization: Bearer $HF_TOKEN, key $WANDB_API_KEY")
    done = commands.run([crash], *debug, "run", str(recipe), "--out", str(tmp_path), **SECRETS)
    assert done.struck
    assert done.returncode == 1
    assert ("Traceback" in done.stderr) == bool(debug)
    assert "refused: Authorization: Bearer [hidden], key [hidden]" in done.said
    assert (tmp_path / "recipe.yaml").is_file()
    for secret in SECRETS.values():
        assert places(tmp_path, done.stdout + done.stderr, secret) == []


@pytest.mark.faults(25)
def test_a_finished_run_has_no_trace_of_the_token(commands: Commands, recipe: Path, tmp_path: Path) -> None:
    """A token on the command line, too: a manifest keeps the command."""
    done = commands.run([], "prune", str(recipe.parent / "teacher"), str(tmp_path / TOKEN), **SECRETS)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / TOKEN / "prune.json").read_text())
    assert record["manifest"]["command"][-1].endswith("/[hidden]")
    assert places(tmp_path, "", TOKEN) == []
    done = commands.run([], "run", str(recipe), "--out", str(tmp_path / "run"), **SECRETS)
    assert done.returncode == 0, done.stderr
    for secret in SECRETS.values():
        assert places(tmp_path / "run", done.stdout + done.stderr, secret) == []


@pytest.mark.faults(25)
@pytest.mark.parametrize("token", [TOKEN, "hf_with\x0btab"])
def test_a_token_that_the_hub_or_the_client_refuses(
    commands: Commands, recipe: Path, tmp_path: Path, token: str
) -> None:
    """httpx puts a header that it cannot send into its message: `Illegal header value b'Bearer ...`."""
    with serving(Hub()) as hub:
        hub.commit({"data/0.jsonl": b"{}"})
        hub.fault_paths, hub.faults = ("/",), [401] * 1000
        hubs = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": token}
        quick = [Setting(name="compress.data.sources.stream:RETRIES", value=0)]
        source = ("--data", f"hub:{REPOSITORY}", "--tokens", "1k", "--alpha", "0")
        model = ("--student", str(recipe.parent / "teacher"), "--set", "distill.batch_tokens=4k")
        done = commands.run(quick, "--debug", "distill", *model, *source, "--out", str(tmp_path / "run"), **hubs)
    assert done.returncode in (1, 3), done.stderr
    assert places(tmp_path / "run", done.stdout + done.stderr, token) == []
    assert repr(token)[1:-1] not in done.stderr


def test_what_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SECRET", "twelve chars\n")
    monkeypatch.setenv("SHORT_TOKEN", "short")
    monkeypatch.setenv("MONKEY", "business as usual")
    text = "twelve chars, short, TOKENIZERS_PARALLELISM, business as usual, hf_" + "x" * 34 + ", hf_short"
    assert redact(text) == "[hidden], short, TOKENIZERS_PARALLELISM, [hidden], [hidden], hf_short"
