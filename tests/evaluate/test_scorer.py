"""The scorer's parts: token ids, greedy answers, memory that runs out, models that need the plain forward pass."""

import json
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import warm
from evaluation_world import Request
from fault_injection import Setting
from helpers import SHARED_DATA, byte_tokenizer, save_tiny_model
from lm_eval.models.huggingface import HFLM

from compress.base.errors import InputError
from compress.evaluate import EvalConfig, evaluate_model
from compress.evaluate.harness.requests import encode_pairs
from compress.evaluate.harness.scorer import Scorer
from compress.inference.prefix_cache import TreeModel
from compress.inference.readout import Checkpoint, load_checkpoint
from compress.inference.sharing import why_plain

QUESTIONS = [
    "The river runs north past the mill.\n\nQuestion: Where does it run?\nAnswer:",
    "The river runs north past the mill.\n\nQuestion: What does it pass on its way there?\nAnswer:",
    "A lamp stands on the stone.\n\nQuestion: Where is the lamp?\nAnswer:",
    "Once",
    "The river runs north past the mill.\n\nQuestion: Where does it run?\nAnswer:",
    "",
]


def checkpoint_of(folder: Path) -> Checkpoint:
    return load_checkpoint(folder, device="cpu")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return checkpoint_of(save_tiny_model(tmp_path_factory.mktemp("scorer") / "m"))


def tokenizers() -> dict[str, Callable[[], Any]]:
    """A byte tokenizer, one that puts BOS first, one that merges across words and marks a text's beginning."""

    def with_bos() -> Any:
        from tokenizers import processors

        tokenizer = byte_tokenizer()
        tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
            single="<eos> $A", special_tokens=[("<eos>", 256)]
        )
        return tokenizer

    def unigram() -> Any:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        pieces = ["▁", "▁a", "ab", "b", "▁b", "ba", "a", "c", "▁ca", "abc", "\n", "A", ".", "▁▁"]
        vocab = [("<unk>", 0.0), ("<s>", 0.0), *((piece, -float(len(pieces) - len(piece))) for piece in pieces)]
        tokenizer = Tokenizer(models.Unigram(vocab, unk_id=0))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        tokenizer.decoder = decoders.Metaspace()
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="<s>")

    def real() -> Any:
        from transformers import PreTrainedTokenizerFast

        path = SHARED_DATA / "tokenizers" / "gpt-neox" / "tokenizer.json"
        if not path.is_file():
            pytest.skip(f"needs {path}")
        return PreTrainedTokenizerFast(tokenizer_file=str(path), eos_token="<|endoftext|>")

    return {"bytes": byte_tokenizer, "bos": with_bos, "unigram": unigram, "gpt-neox": real}


@pytest.mark.parametrize("name", tokenizers())
@pytest.mark.parametrize("add_bos_token", [None, True, False])
def test_token_ids_are_those_of_lm_eval(checkpoint: Checkpoint, name: str, add_bos_token: bool | None) -> None:
    """Of its own loop over `_encode_pair`, for texts that end in white space, begin with BOS, or are empty."""
    model = HFLM(pretrained=checkpoint.model, tokenizer=tokenizers()[name](), add_bos_token=add_bos_token)
    beginning = model.tokenizer.decode(model.prefix_token_id)
    rng = random.Random(0)
    texts = ["", "a", "ab ", "b\n\n", f"{beginning}ab", "abc a  ", "été 中文 ", "A. b\nab", f"{beginning}", "\u00a0"]
    pairs = [(rng.choice(texts) + rng.choice(texts), rng.choice(texts[1:]) + rng.choice(texts)) for _ in range(300)]
    theirs: list[Any] = []
    model._loglikelihood_tokens = lambda requests, **_: theirs.extend(requests)
    comparable = [pair for pair in pairs if pair[0] == "" or model.tok_encode(pair[0].rstrip())]
    assert len(comparable) > 150
    model.loglikelihood([Request(*pair) for pair in comparable], disable_tqdm=True)
    ours = encode_pairs(model, comparable)
    assert [(c.tolist(), t.tolist()) for c, t in ours] == [(c, t) for _, c, t in theirs]


def test_greedy_answers_are_those_of_lm_eval(checkpoint: Checkpoint) -> None:
    """One request at a time through lm-eval, all at once through ours, with prompts that share passages."""
    scorer, harness = Scorer(checkpoint, 512), HFLM(pretrained=checkpoint.model, tokenizer=checkpoint.tokenizer)
    settings: list[dict[str, Any]] = [
        {"until": ["\n"], "max_gen_toks": 24, "do_sample": False},
        {"until": ["e", "\n\n"], "max_gen_toks": 12},
        {"until": [], "max_gen_toks": 40, "temperature": 0.0},
        {"until": ["zz"], "max_gen_toks": 5, "num_beams": 2},
    ]
    requests = [Request(text, each) for each in settings for text in QUESTIONS if text]
    expected = [harness.generate_until([request], disable_tqdm=True)[0] for request in requests]
    assert scorer.generate_until(requests, disable_tqdm=True) == expected
    assert len(set(expected)) > len(QUESTIONS)
    assert isinstance(scorer.generate_until([Request("", settings[0])], disable_tqdm=True)[0], str)


def test_a_repetition_penalty_of_the_model_is_left_to_lm_eval(checkpoint: Checkpoint) -> None:
    request = [Request(QUESTIONS[0], {"until": ["zz"], "max_gen_toks": 12})]
    harness = HFLM(pretrained=checkpoint.model, tokenizer=checkpoint.tokenizer)
    without = Scorer(checkpoint, 512).generate_until(request, disable_tqdm=True)
    checkpoint.model.generation_config.repetition_penalty = 5.0
    try:
        penalized = Scorer(checkpoint, 512).generate_until(request, disable_tqdm=True)
        assert penalized == harness.generate_until(request, disable_tqdm=True) != without
    finally:
        checkpoint.model.generation_config.repetition_penalty = None


ERRORS: list[Exception] = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried ..."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] data. DefaultCPUAllocator: not enough memory: you tried ..."),
    MemoryError(),
]


@pytest.mark.parametrize("error", ERRORS, ids=["cuda", "cpu", "windows", "python"])
def test_batches_are_halved_until_the_memory_holds_them(
    checkpoint: Checkpoint, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that holds two rows: the numbers stay, and only the first batch that is too large is tried in vain."""
    scorer = Scorer(checkpoint, 4096)
    rng = random.Random(0)
    contexts = ["".join(rng.choices("abcdef ", k=60)) + "x" for _ in range(8)]
    requests = [Request(context, option) for context in contexts for option in ("one", "two")]
    answers = [Request(text, {"until": ["\n"], "max_gen_toks": 8}) for text in QUESTIONS]
    scores, texts = scorer.loglikelihood(requests), scorer.generate_until(answers)
    sizes: list[int] = []
    states, with_cache = TreeModel.states, TreeModel.states_and_cache

    def limited(original: Any) -> Any:
        def run(self: TreeModel, rows: Sequence[Any], job: Any) -> Any:
            sizes.append(len(rows))
            if len(rows) > 2:
                raise error
            return original(self, rows, job)

        return run

    monkeypatch.setattr(TreeModel, "states", limited(states))
    monkeypatch.setattr(TreeModel, "states_and_cache", limited(with_cache))
    again = Scorer(checkpoint, 4096)
    sizes.clear()
    found = again.loglikelihood(requests)
    assert [ll for ll, _ in found] == pytest.approx([ll for ll, _ in scores], abs=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in scores]
    assert sum(size for size in sizes if size <= 2) == 8
    assert sum(size > 2 for size in sizes) <= 2  # 8, 4
    assert again.generate_until(answers) == texts


def test_one_sequence_that_does_not_fit_is_an_error_that_says_what_to_do(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = Scorer(checkpoint, 4096)

    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(TreeModel, "states", full)
    with pytest.raises(InputError, match=r"sequence of 4 tokens.*eval\.dtype=bfloat16"):
        scorer.loglikelihood([Request("abc", "de")])
    monkeypatch.setattr(TreeModel, "states", lambda *_: (_ for _ in ()).throw(RuntimeError("a defect")))
    with pytest.raises(RuntimeError, match="a defect"):
        scorer.loglikelihood([Request("abc", "de")])


def test_logits_that_are_no_numbers_are_refused(world: dict[str, Path]) -> None:
    broken = load_checkpoint(world["model"], device="cpu")
    scorer = Scorer(broken, 4096)
    with torch.no_grad():
        broken.model.base_model.norm.weight[0] = math.nan
    with pytest.raises(InputError, match=r"gives NaN.*eval\.dtype=float32"):
        scorer.loglikelihood([Request("abc", "de")])


_DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
SHARING: dict[str, tuple[str, dict[str, Any], str | None]] = {
    "llama": ("llama", {}, None),
    "opt": ("opt", {"word_embed_proj_dim": 32, "ffn_dim": 64}, None),
    "mistral, full": ("mistral", {"sliding_window": None}, None),
    "mistral": ("mistral", {"sliding_window": 16}, "window"),
    "gemma3": ("gemma3_text", {"head_dim": 8, "sliding_window": 16}, "sliding_attention"),
    "gpt_neo": ("gpt_neo", {"attention_types": [[["global", "local"], 2]], "window_size": 16}, "window"),
    "bloom": ("bloom", {}, "ALiBi|takes no tree|differed"),
    "falcon": ("falcon", {"alibi": True}, "ALiBi"),
    "mamba": ("mamba", {}, "linear_attention|state"),
    "dynamic rope": ("llama", {"rope_parameters": _DYNAMIC}, "longest"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SHARING)
def test_models_that_need_the_plain_pass_take_it_and_score_as_lm_eval(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model_type, options, reason = SHARING[name]
    checkpoint = checkpoint_of(save_tiny_model(tmp_path / "m", model_type, scale=0.1, **options))
    found, error = why_plain(checkpoint)
    assert (found is None) == (reason is None)
    assert reason is not None or error < 1e-4
    pairs = [(question, option) for question in [*QUESTIONS, "A mill. "] for option in (" mill", "no", "x")]
    capsys.readouterr()
    scores = Scorer(checkpoint, 600).loglikelihood([Request(*pair) for pair in pairs])
    said = " ".join(capsys.readouterr().err.split())
    assert ("computed once" if reason is None else "computed by itself: ") in said
    harness = HFLM(pretrained=checkpoint.model, tokenizer=checkpoint.tokenizer, softmax_dtype="float32")
    for pair, (ll, greedy) in zip(pairs, scores, strict=True):
        expected, is_greedy = harness.loglikelihood([Request(*pair)], disable_tqdm=True)[0]
        assert ll == pytest.approx(expected, abs=1e-4)
        assert greedy == is_greedy


def test_a_trial_finds_positions_that_are_counted_instead_of_read(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model whose code ignores position ids, as one with ALiBi would, differs in a tree and nowhere else."""
    forward = checkpoint.model.base_model.forward
    monkeypatch.setattr(
        checkpoint.model.base_model, "forward", lambda **options: forward(**{**options, "position_ids": None})
    )
    reason, error = why_plain(checkpoint)
    assert "differed" in str(reason)
    assert error > 1e-2


def test_lm_evals_command_takes_our_backend(world: dict[str, Path], tmp_path: Path) -> None:
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    text = (world["tasks"] / "quiz.yaml").read_text().replace("acme/quiz", str(world["root"] / "acme" / "quiz"))
    (tasks / "quiz.yaml").write_text(text.replace("training_split: train\nvalidation_split: validation\n", ""))
    none = Setting(name="lm_eval.tasks.manager:__file__", value=str(tmp_path / "lm-eval"))  # its 14,000 take seconds
    command = ["run", "--model", "compress", "--include_path", str(tasks), "--tasks", "quiz", "--batch_size", "4"]
    command += ["--model_args", f"pretrained={world['model']},dtype=float32", "--output_path", str(tmp_path / "out")]
    done = warm().run([none], *command, script="compress.evaluate.lm_eval_cli", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "out").rglob("results_*.json")
    found = json.loads(path.read_text())["results"]["quiz"]
    ours = evaluate_model(
        world["model"],
        EvalConfig(tasks=["quiz"], datasets_root=str(world["root"]), task_folder=str(world["tasks"]), speed=False),
    )["tasks"]["quiz"]
    assert found["acc,none"] == ours["acc"]
    assert found["acc_norm,none"] == ours["acc_norm"]
