"""Training loops over one world, each the real one of its project; what each returns is times of windows of steps.

Every loop loads the same checkpoints, trains on the same store, takes fused AdamW steps at micro-batch = batch, and
logs once a window. The student learns with 0.8 KL + 0.2 CE at T = 1, TRL's with its KL alone (it has no CE).
"""

import dataclasses
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness import peak_bytes, synchronize
from loss_peers import ALPHA, CHUNKS, IGNORED
from step_world import World
from torch.nn import functional

LR = 3e-4


@dataclasses.dataclass(frozen=True)
class Job:
    """What a loop is given."""

    world: World
    folder: Path
    """Where `World.build` put models and data."""
    dtype: str
    device: str
    windows: int
    window_steps: int
    cpu_tuning: bool
    """Whether our loop sets its own switches; the others never do."""

    @property
    def steps(self) -> int:
        return self.windows * self.window_steps

    def models(self, student_dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
        """Student and frozen teacher; in bf16 the teacher's weights are bf16."""
        from transformers import AutoModelForCausalLM

        teacher_dtype = torch.bfloat16 if self.dtype == "bf16" else torch.float32
        student = AutoModelForCausalLM.from_pretrained(self.folder / "student", dtype=student_dtype)
        teacher = AutoModelForCausalLM.from_pretrained(self.folder / "teacher", dtype=teacher_dtype)
        return student.to(self.device).train(), teacher.to(self.device).eval().requires_grad_(False)

    def rows(self) -> Any:
        """Token ids [steps * batch, S]."""
        from compress.data import TokenStore

        return TokenStore.open(self.folder / "data").rows(range(self.steps * self.world.rows))


class Stopwatch:
    """Seconds of each window of steps."""

    def __init__(self, job: Job) -> None:
        self._job, self._done = job, 0
        self.windows: list[float] = []
        self._last = time.perf_counter()

    def step(self) -> None:
        """Note the end of a step."""
        self._done += 1
        if self._done % self._job.window_steps == 0:
            synchronize(self._job.device)
            now = time.perf_counter()
            self.windows.append(now - self._last)
            self._last = now

    def result(self, loss: float) -> dict[str, Any]:
        return {"windows_s": self.windows, "peak_bytes": peak_bytes(self._job.device), "loss": loss}


def ours(job: Job) -> dict[str, Any]:
    """`compress.distill.distill`; times, loss and memory are those of its metrics.jsonl."""
    import json

    from compress.distill import DistillConfig, distill

    config = DistillConfig(
        alpha=ALPHA,
        tokens=job.steps * job.world.batch_tokens,
        batch_tokens=job.world.batch_tokens,
        micro_batch_rows=job.world.rows,
        lr=LR,
        precision="bf16" if job.dtype == "bf16" else "fp32",
        cpu_tuning=job.cpu_tuning,
        log_every=job.window_steps,
        heldout_every=0,
        heldout_sequences=0,
        checkpoint_every=0,
    )
    with tempfile.TemporaryDirectory(dir=job.folder) as scratch:
        out, work = Path(scratch) / "student", Path(scratch) / "train"
        models = {name: job.folder / name for name in ("student", "teacher", "data")}
        distill(config, out=out, work=work, **models)
        rows = [json.loads(line) for line in (work / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "tokens_per_s" in row]
    tokens = job.window_steps * job.world.batch_tokens
    windows = [tokens / row["tokens_per_s"] for row in rows]
    return {"windows_s": windows, "peak_bytes": rows[-1]["peak_gib"] * 2**30, "loss": rows[-1]["loss"]}


def hf_dense(job: Job) -> dict[str, Any]:
    """transformers' Trainer with the dense loss as one would write it: fp32 log-softmax of both models' logits."""

    def loss(student: Any, teacher: Any, ids: torch.Tensor, autocast: Any) -> torch.Tensor:
        logits = student(input_ids=ids, use_cache=False).logits[:, :-1].flatten(0, 1)
        with torch.no_grad():
            target = teacher(input_ids=ids, use_cache=False).logits[:, :-1].flatten(0, 1)
            target = target.log_softmax(-1, dtype=torch.float32)
        logs = logits.log_softmax(-1, dtype=torch.float32)
        soft = functional.kl_div(logs, target, log_target=True, reduction="batchmean")
        return ALPHA * soft + (1 - ALPHA) * functional.nll_loss(logs, ids[:, 1:].flatten())

    return _hf_trainer(job, loss)


def hf_liger(job: Job) -> dict[str, Any]:
    """transformers' Trainer with Liger's chunked loss, compiled as is its default, over last hidden states."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    chunked = LigerFusedLinearJSDLoss(weight_hard_loss=1 - ALPHA, weight_soft_loss=ALPHA, beta=0.0)

    def loss(student: Any, teacher: Any, ids: torch.Tensor, autocast: Any) -> torch.Tensor:
        with autocast():
            hidden = student.base_model(input_ids=ids, use_cache=False).last_hidden_state
            with torch.no_grad():
                target = teacher.base_model(input_ids=ids, use_cache=False).last_hidden_state
            states, target = (h[:, :-1].flatten(0, 1) for h in (hidden, target))
            out: torch.Tensor = chunked(
                states, student.lm_head.weight, target, teacher.lm_head.weight, ids[:, 1:].flatten()
            )
            return out

    return _hf_trainer(job, loss)


def _hf_trainer(job: Job, loss: Callable[..., torch.Tensor]) -> dict[str, Any]:
    from transformers import Trainer, TrainingArguments

    student, teacher = job.models()

    class Distiller(Trainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
            return loss(model, teacher, inputs["input_ids"], self.accelerator.autocast)

    with tempfile.TemporaryDirectory(dir=job.folder) as scratch:
        arguments = TrainingArguments(**_hf_options(job, scratch), remove_unused_columns=False)
        data = [{"input_ids": row} for row in torch.from_numpy(job.rows())]
        watch = Stopwatch(job)
        trainer = Distiller(student, arguments, train_dataset=data, callbacks=[_callback(watch)])
        return watch.result(trainer.train().training_loss)


def trl_gkd(job: Job) -> dict[str, Any]:
    """TRL's GKDTrainer off-policy (lmbda = 0) with forward KL (beta = 0): no cross-entropy."""
    from datasets import Dataset
    from transformers import AutoTokenizer, default_data_collator
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    student, teacher = job.models()
    rows = job.rows().tolist()
    data = Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * len(r) for r in rows], "labels": rows})
    with tempfile.TemporaryDirectory(dir=job.folder) as scratch:
        arguments = GKDConfig(
            **_hf_options(job, scratch), lmbda=0.0, beta=0.0, temperature=1.0, max_length=job.world.seq_len
        )
        watch = Stopwatch(job)
        trainer = GKDTrainer(
            student,
            teacher,
            arguments,
            data_collator=default_data_collator,
            train_dataset=data,
            processing_class=AutoTokenizer.from_pretrained(job.folder / "student"),
            callbacks=[_callback(watch)],
        )
        return watch.result(trainer.train().training_loss)


def _hf_options(job: Job, scratch: str) -> dict[str, Any]:
    return {
        "output_dir": scratch,
        "per_device_train_batch_size": job.world.rows,
        "max_steps": job.steps,
        "learning_rate": LR,
        "weight_decay": 0.1,
        "lr_scheduler_type": "cosine",
        "optim": "adamw_torch_fused",
        "bf16": job.dtype == "bf16",
        "gradient_checkpointing": False,
        "use_cpu": job.device == "cpu",
        "dataloader_pin_memory": job.device == "cuda",
        "logging_steps": job.window_steps,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def _callback(watch: Stopwatch) -> Any:
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        def on_step_end(self, *arguments: Any, **kwargs: Any) -> None:
            watch.step()

    return Watch()


def torchtune_loop(job: Job) -> dict[str, Any]:
    """A loop like torchtune's knowledge_distillation_single_device recipe, with its chunked losses.

    As there: 8 chunks of logits of both models, all alive until the backward pass; labels shifted by one with the last
    position ignored; no clipping; fused AdamW; in bf16 the weights, gradients and moments are bf16 too. Its recipe has
    kd_ratio 0.5 by default.
    """
    from torchtune.modules.loss import CEWithChunkedOutputLoss, ForwardKLWithChunkedOutputLoss

    student, teacher = job.models(torch.bfloat16 if job.dtype == "bf16" else torch.float32)
    optimizer = torch.optim.AdamW(student.parameters(), lr=LR, weight_decay=0.1, fused=True)
    soft_loss, hard_loss = ForwardKLWithChunkedOutputLoss(CHUNKS, IGNORED), CEWithChunkedOutputLoss(CHUNKS, IGNORED)

    def logits(model: Any, ids: torch.Tensor) -> list[torch.Tensor]:
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        return [model.lm_head(part) for part in hidden.chunk(CHUNKS, dim=1)]

    ignored = torch.full((job.world.rows, 1), IGNORED, device=job.device)
    watch, loss = Stopwatch(job), torch.zeros(())
    for batch in torch.from_numpy(job.rows()).split(job.world.rows):
        ids = batch.to(job.device)
        chunks = logits(student, ids)
        with torch.no_grad():
            teacher_chunks = logits(teacher, ids)
        labels = torch.hstack((ids[:, 1:], ignored))
        loss = ALPHA * soft_loss(chunks, teacher_chunks, labels) + (1 - ALPHA) * hard_loss(chunks, labels)
        del chunks, teacher_chunks
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        watch.step()
    return watch.result(loss.item())


@dataclasses.dataclass(frozen=True)
class Loop:
    """A loop by name."""

    name: str
    label: str
    run: Callable[[Job], dict[str, Any]]
    package: str | None = None
    """The package it needs besides transformers."""


LOOPS = (
    Loop("ours", "compress", ours),
    Loop("hf_dense", "HF Trainer, dense loss", hf_dense),
    Loop("hf_liger", "HF Trainer, Liger's loss", hf_liger, "liger"),
    Loop("trl_gkd", "TRL GKDTrainer", trl_gkd, "trl"),
    Loop("torchtune", "torchtune-style loop", torchtune_loop, "torchtune"),
)
