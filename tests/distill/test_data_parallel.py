"""Two processes under torchrun do what one does."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from distill_world import SEQ_LEN, World
from helpers import save_tiny_model
from safetensors.torch import load_file

from compress.config import to_dict
from compress.distill import DistillConfig

SCRIPT = """
import json, sys
from pathlib import Path
from compress.config import build_from
from compress.distill import DistillConfig, distill

job = json.loads(Path(sys.argv[1]).read_text())
result = distill(build_from(DistillConfig, job["config"]), **{k: Path(v) for k, v in job["arguments"].items()})
assert result.steps == 6
"""


@pytest.mark.parametrize("tied", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_two_processes_equal_one(world: World, options: Callable[..., DistillConfig], tied: bool) -> None:
    """Five rows a step over two processes: an odd row is filled up, micro-batches differ, the result does not."""
    student = save_tiny_model(world.root / "student", scale=0.1, num_hidden_layers=1, tie_word_embeddings=tied)
    config = options(batch_tokens=5 * SEQ_LEN, tokens=28 * SEQ_LEN, micro_batch_rows=2)
    world = dataclasses.replace(world, student=student)
    world.run("one", config)
    arguments = {key: str(value) for key, value in world.arguments("two").items()}
    (world.root / "job.json").write_text(json.dumps({"config": to_dict(config), "arguments": arguments}))
    (world.root / "script.py").write_text(SCRIPT)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [*launch, str(world.root / "script.py"), str(world.root / "job.json")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True)
    try:
        _, said = process.communicate(timeout=120)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, said[-3000:]

    one, two = (load_file(world.root / name / "student" / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=2e-5)
    pairs = list(zip(world.metrics("one"), world.metrics("two"), strict=True))
    for single, double in pairs:
        for key in single.keys() - {"tokens_per_s", "peak_gib", "mfu"}:
            assert double[key] == pytest.approx(single[key], rel=1e-4), key
