"""Token ids of answers to prompts, in batches that a journal keeps."""

from collections.abc import Sequence

from compress.base.journal import Batch, Journal
from compress.base.progress import say
from compress.generate.config import GenerateConfig
from compress.inference.decoding import Stops, decode, end_tokens
from compress.inference.halving import Halving
from compress.inference.plain import generate_plainly
from compress.inference.planning import Job, decoding_cost, plan
from compress.inference.prefix_cache import TreeModel
from compress.inference.readout import Checkpoint
from compress.inference.sampling import Sampler
from compress.inference.sharing import why_plain
from compress.inference.tree import Ids

STAGE = "Writing"
"""What the journal calls it."""


class Writer:
    """Lets a model answer: what prompts share is computed once, and a finished answer leaves its batch.

    A model that cannot be run so (see `compress.inference.sharing`) writes by transformers' own generation, with the
    same draws.
    """

    def __init__(self, checkpoint: Checkpoint, config: GenerateConfig) -> None:
        self._checkpoint, self._config = checkpoint, config
        self._trees = TreeModel(checkpoint)
        self._halving = Halving(self._trees.forget, "generate")
        self._ends = end_tokens(checkpoint.model, checkpoint.tokenizer)
        self._stops = Stops(checkpoint.tokenizer, (), self._ends)
        reason, _ = why_plain(checkpoint)
        self._shares = reason is None
        if reason is not None:
            say(f"Answers are written by transformers' own generation: {checkpoint.name} is none for ours ({reason}).")

    def answers(self, prompts: Sequence[Ids], journal: Journal) -> list[list[list[int]]]:
        """Token ids of `samples` answers to each prompt [n], ends included."""
        names: dict[bytes, list[tuple[int, int]]] = {}
        for number, ids in enumerate(prompts):
            names.setdefault(ids.tobytes(), []).extend((number, sample) for sample in range(self._config.samples))
        batches: list[tuple[Job, list[tuple[int, int]]]] = []
        for turn in range(max(map(len, names.values()))):  # prompts that are alike are no part of one plan
            asked = [answers[turn] for answers in names.values() if turn < len(answers)]
            sequences = [prompts[number] for number, _ in asked]
            jobs = plan(
                sequences,
                [len(ids) - 1 for ids in sequences],
                self._config.batch_tokens,
                share=self._shares,
                cost=decoding_cost(self._config.new_tokens),
            )
            batches += [(job, [asked[number] for number in job.members]) for job in jobs]
        found = journal.measure(
            STAGE,
            [
                Batch([job.cuts, [prompts[number].tolist() for number, _ in asked], asked], len(asked))
                for job, asked in batches
            ],
            lambda number: self._write(*batches[number], prompts),
        )
        self._trees.forget()
        answers: list[list[list[int]]] = [[[] for _ in range(self._config.samples)] for _ in prompts]
        for (_, asked), written in zip(batches, found, strict=True):
            for (number, sample), answer in zip(asked, written, strict=True):
                answers[number][sample] = answer
        return answers

    def _write(self, job: Job, asked: Sequence[tuple[int, int]], prompts: Sequence[Ids]) -> list[list[int]]:
        """The answers of one batch."""
        left = iter(asked)
        rows = [[next(left) for _ in row] for row in job.rows]

        def written(part: Sequence[Sequence[tuple[int, int]]]) -> list[list[list[int]]]:
            own = [each for row in part for each in row]
            names = [f"{number} {sample}" for number, sample in own]
            sampler = Sampler(self._config.temperature, self._config.top_p, self._config.seed, names)
            if self._shares:
                ids = [[prompts[number] for number, _ in row] for row in part]
                found = decode(self._checkpoint, self._trees, job, ids, self._config.new_tokens, self._stops, sampler)
            else:
                found = generate_plainly(
                    self._checkpoint.model,
                    [prompts[number] for number, _ in own],
                    self._config.new_tokens,
                    self._ends,
                    sampler,
                )
            answers = iter(found)
            return [[next(answers) for _ in row] for row in part]

        def tokens(part: Sequence[Sequence[tuple[int, int]]]) -> int:
            return sum(len(prompts[number]) + self._config.new_tokens for row in part for number, _ in row)

        return [answer for row in self._halving.run(rows, written, tokens) for answer in row]
