"""Our own engine in one process, without anything around it: members alone, and as a rival.

The conventional ensemble here is what one would write over this engine: every member tells its
distribution, one after another (here) or each in a process of its own (`peers`); they are averaged;
one draw.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from cluster.engine.loading import load_engine
from cluster.engine.types import (
    Output,
    Rank,
    Sample,
    SamplingParams,
    Verdict,
    Work,
)
from cluster.errors import InternalError
from cluster.members.base import NEVER_ENDS
from cluster.merging.cache import folder_of
from cluster.models.machine import device_of
from cluster.spec import MemberSpec
from cluster.text.member import MemberText
from deployments.bench.figures import Reply
from deployments.bench.workload import Job

_KV_BYTES = 256 << 20

Probabilities = NDArray[np.float32]


class BareEngine:
    """A member's engine and tokenizer, stepped on this thread."""

    def __init__(self, member: MemberSpec) -> None:
        folder = folder_of(member, download=False)
        self.text = MemberText.load(folder)
        self.num_ids = self.text.vocabulary.size
        self._end_ids = tuple(self.text.end_ids)
        self._engine = load_engine(
            folder,
            dtype=member.dtype,
            device=device_of(member),
            kv_memory_bytes=member.kv_memory_bytes or _KV_BYTES,
            max_context=member.max_context,
            num_threads=max(1, round(member.resources.num_cpus)),
            num_ids=self.num_ids,
        )

    def decode(self, jobs: Sequence[Job], num_tokens: int) -> list[Reply]:
        """All jobs at one time, each as one work: what the engine does without a data plane."""
        sent_s = time.perf_counter()
        prompts = {self._engine.open(): job for job in jobs}
        arrivals_s: dict[int, list[float]] = {sequence: [] for sequence in prompts}
        fed = dict.fromkeys(prompts, (0, 0))
        for sequence, job in prompts.items():
            ids = self.text.render(job.prompt, None)
            self._engine.submit(Work(sequence, 0, ids, self._draw(job.seed, num_tokens)))
        while self._engine.has_work():
            for output in self._engine.step():
                _check(output)
                arrivals_s[output.sequence] += [time.perf_counter()] * len(output.tokens)
                passes, tokens = fed[output.sequence]
                fed[output.sequence] = passes + output.num_passes, tokens + output.num_processed
        for sequence in prompts:
            self._engine.close(sequence)
        return [Reply(sent_s, tuple(arrivals_s[s]), *fed[s]) for s in prompts]

    def _draw(self, seed: int, num_tokens: int) -> Sample:
        drawn = iter(range(1, num_tokens + 1))

        def judge(token: int) -> Verdict:
            return Verdict.KEEP_AND_STOP if next(drawn) == num_tokens else Verdict.KEEP

        return Sample(
            SamplingParams(), seed, 0, judge, banned=self._end_ids, banned_before=NEVER_ENDS
        )

    def begin(self) -> int:
        """A new sequence."""
        return self._engine.open()

    def end(self, sequence: int) -> None:
        """Forget it."""
        self._engine.close(sequence)

    def told(self, sequence: int, start: int, tokens: Sequence[int]) -> Probabilities:
        """[V] of the token after `start` known ones and these, never the end; at temperature 1."""
        want = Rank(SamplingParams(), banned=self._end_ids)
        self._engine.submit(Work(sequence, start, tokens, want))
        while self._engine.has_work():
            for output in self._engine.step():
                _check(output)
                if (found := output.distribution) is not None:
                    probabilities = np.zeros(self.num_ids, dtype=np.float32)
                    probabilities[found.ids] = np.exp(found.logprobs)
                    return probabilities
        raise InternalError("BENCH_FAILED", "the engine told no distribution")


def _check(output: Output) -> None:
    if output.error:
        raise InternalError("BENCH_FAILED", output.error)


Tell = Callable[[int, Sequence[int]], list[Probabilities]]  # of all members: (start, tokens)


def average(
    tell: Tell, prompt: Sequence[int], job: Job, num_tokens: int, weights: Sequence[float]
) -> Reply:
    """A conventional ensemble over whatever tells the members' distributions."""
    draws = np.random.default_rng(job.seed)
    sent_s, arrivals_s = time.perf_counter(), []
    start, news = 0, list(prompt)
    for _ in range(num_tokens):
        told = tell(start, news)
        mean = sum(weight * law for weight, law in zip(weights, told, strict=True))
        sums = np.cumsum(mean)
        start += len(news)
        news = [int(np.searchsorted(sums, draws.random() * sums[-1], side="right"))]
        arrivals_s.append(time.perf_counter())
    num_members = len(weights)
    num_fed = num_members * start
    return Reply(sent_s, tuple(arrivals_s), num_members * num_tokens, num_fed)


@contextmanager
def one_after_another(engines: Sequence[BareEngine]) -> Iterator[Tell]:
    """All members on this thread, in turn."""
    sequences = [engine.begin() for engine in engines]

    def tell(start: int, tokens: Sequence[int]) -> list[Probabilities]:
        pairs = zip(engines, sequences, strict=True)
        return [engine.told(sequence, start, tokens) for engine, sequence in pairs]

    try:
        yield tell
    finally:
        for engine, sequence in zip(engines, sequences, strict=True):
            engine.end(sequence)
