"""Streams in a closed loop: reply after reply, each the same as when its seed was asked first."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from cluster.client import AsyncClient
from cluster.client.replies import Reply
from deployments.bench.workload import Job, fresh_jobs

SPEC = """
version: 1
members:
  austen: {model: embedded:tiny-austen, replicas: 2, MEMBER}
  kjv: {model: embedded:tiny-kjv, MEMBER}
  bytes: {model: embedded:tiny-bytes, MEMBER}
blends:
  tokens: {method: mixture, span: token, members: {austen: 0.5, kjv: 0.5}}
  replies: {method: mixture, span: response, members: {austen: 0.5, kjv: 0.5}}
  words: {method: mixture, span: word, members: {austen: 0.5, bytes: 0.5}}
  adaptive: {method: mixture, adapt: {floor: 0.05}, members: {austen: 0.5, kjv: 0.5}}
  mean: {method: ensemble, candidates: 32, members: {austen: 0.5, kjv: 0.5}}
  sure: {method: route, gate: {by: confidence, first: austen}, threshold: 0.3,
         members: {austen: 1, kjv: 1}}
serving: {port: 0}
""".replace("MEMBER", "dtype: float32, kv_memory: 64MiB, resources: {num_cpus: 1}")
BLENDS = ("tokens", "replies", "words", "adaptive", "mean", "sure")
NUM_STREAMS = 8
NUM_TOKENS = 32
NUM_PROMPT_WORDS = 16

_NUM_JOBS = 120  # each comes again when all have come
_LEFT_EARLY = 10  # every so many-th reply is left in the middle


@dataclass(slots=True)
class Load:
    """What was asked and what came."""

    ends_s: list[float] = field(default_factory=list)  # of whole replies
    num_left: int = 0  # replies that the client left
    first: dict[int, int] = field(default_factory=dict)  # by job, a hash of its first reply
    num_different: int = 0  # replies that were not what their seed gave the first time


async def run_load(address: str, load: Load, clock_s: Callable[[], float], seconds: float) -> None:
    """Keep the streams going for so long."""
    jobs = list(enumerate(itertools.islice(fresh_jobs(NUM_PROMPT_WORDS), _NUM_JOBS)))
    numbers = itertools.count()
    endless = itertools.cycle(jobs)
    async with AsyncClient(address) as client:
        streams = (
            _stream(client, endless, numbers, load, clock_s, seconds) for _ in range(NUM_STREAMS)
        )
        await asyncio.gather(*streams)


async def _stream(
    client: AsyncClient,
    jobs: Iterator[tuple[int, Job]],
    numbers: Iterator[int],
    load: Load,
    clock_s: Callable[[], float],
    seconds: float,
) -> None:
    while clock_s() < seconds:
        (job_number, job), number = next(jobs), next(numbers)
        stream = client.stream(
            job.prompt,
            blend=BLENDS[job_number % len(BLENDS)],
            seed=job.seed,
            max_tokens=NUM_TOKENS,
            ignore_eos=True,
            conversation_id=f"conversation {number}",  # each a new one
            timeout_s=120,
        )
        async with stream:
            if number % _LEFT_EARLY == _LEFT_EARLY - 1:
                await anext(stream)
                load.num_left += 1
                continue
            reply = await stream.reply()
        _judge(load, job_number, reply)
        load.ends_s.append(clock_s())


def _judge(load: Load, job_number: int, reply: Reply) -> None:
    said = hash((reply.text, tuple((token.member, token.bytes) for token in reply.tokens)))
    load.num_different += load.first.setdefault(job_number, said) != said
