"""Every log-likelihood and every generated answer of lm-eval's own tasks on real data, ours beside its hf backend's."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from evaluation_world import HUB, ON_REAL_DATA, Request
from helpers import SHARED_DATA, save_tiny_model
from transformers import PreTrainedTokenizerFast

from compress.evaluate.harness.local_data import local_datasets
from compress.evaluate.harness.names import find_tasks
from compress.evaluate.harness.scorer import Scorer
from compress.inference.readout import load_checkpoint

AGIEVAL = ["agieval_lsat_ar", "agieval_lsat_lr", "agieval_lsat_rc", "agieval_sat_en", "agieval_sat_math"]
TRAIN = 40
pytestmark = ON_REAL_DATA


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a real tokenizer."""
    folder = tmp_path_factory.mktemp("scores") / "model"
    save_tiny_model(folder, vocab_size=50304, max_position_embeddings=4096, scale=0.1)
    file = str(SHARED_DATA / "tokenizers" / "gpt-neox" / "tokenizer.json")
    PreTrainedTokenizerFast(tokenizer_file=file, eos_token="<|endoftext|>").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The hub's data; the last questions of ARC-Challenge's test split stand in for its train split."""
    root = tmp_path_factory.mktemp("root")
    for dataset in (path for organization in HUB.iterdir() for path in organization.iterdir()):
        (root / dataset.parent.name).mkdir(exist_ok=True)
        if dataset.name != "ai2_arc":
            (root / dataset.parent.name / dataset.name).symlink_to(dataset)
    (source,) = (HUB / "allenai" / "ai2_arc" / "ARC-Challenge").glob("test-*.parquet")
    questions = pq.read_table(source)
    arc = root / "allenai" / "ai2_arc"
    (arc / "ARC-Challenge").mkdir(parents=True)
    pq.write_table(questions[:-TRAIN], arc / "ARC-Challenge" / "test-0.parquet")
    pq.write_table(questions[-TRAIN:], arc / "ARC-Challenge" / "train-0.parquet")
    files = "".join(f"  - split: {split}\n    path: ARC-Challenge/{split}-*\n" for split in ("train", "test"))
    (arc / "README.md").write_text(f"---\nconfigs:\n- config_name: ARC-Challenge\n  data_files:\n{files}---\n")
    return root


@pytest.mark.parametrize(
    ("tasks", "shots", "limit"),
    [
        (["openbookqa", "arc_challenge", *AGIEVAL], 0, 12),
        (["arc_challenge"], 5, 25),
        (["mmlu"], 5, 2),
        (["squad_completion_verbatim"], None, 20),
    ],
    ids=["zero shots", "arc, 5 shots", "mmlu, 5 shots", "squad"],
)
def test_no_answer_and_no_log_likelihood_differs(
    model: Path, root: Path, tasks: list[str], shots: int | None, limit: int
) -> None:
    from lm_eval import simple_evaluate

    with local_datasets(root):
        reference = simple_evaluate(
            model="hf",
            model_args={"pretrained": str(model), "dtype": "float32"},
            tasks=tasks,
            num_fewshot=shots,
            device="cpu",
            batch_size=1,
            limit=limit,
            bootstrap_iters=0,
            task_manager=find_tasks(tasks, None),
        )
    assert reference is not None
    samples = [sample for own in reference["samples"].values() for sample in own]
    assert len(samples) == limit * (57 if tasks == ["mmlu"] else len(tasks))
    scorer = Scorer(load_checkpoint(model, device="cpu"), 8192)
    requests = [Request(*arguments) for sample in samples for arguments in sample["arguments"]]
    if tasks == ["squad_completion_verbatim"]:
        answers = scorer.generate_until(requests, disable_tqdm=True)
        assert answers == [sample["resps"][0][0] for sample in samples]
        assert len(set(answers)) > 1
        return
    left = iter(scorer.loglikelihood(requests, disable_tqdm=True))
    for sample in samples:
        theirs = [response[0] for response in sample["resps"]]
        ours = [next(left) for _ in theirs]
        assert [ll for ll, _ in ours] == pytest.approx([ll for ll, _ in theirs], abs=1e-4)
        assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
        assert argmax(ours) == argmax(theirs)


def argmax(options: list[Any]) -> int:
    return max(range(len(options)), key=lambda i: options[i][0])
