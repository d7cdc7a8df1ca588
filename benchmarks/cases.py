"""Who is measured: rivals and Cuvée, each given the same kind of jobs, each in every round."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from benchmarks import rivals
from benchmarks.figures import Reply
from benchmarks.streams import StreamClient
from benchmarks.workload import BY_RESPONSE, BY_TOKEN, Ask, Job, Workload

LOOP, MIX = "transformers loop", "transformers mixture"  # what the others are compared with


@dataclass(frozen=True, slots=True)
class Case:
    """One way to get the replies."""

    name: str
    rivals: tuple[str, ...]  # the cases it is compared with
    num_jobs: int  # per round
    is_served: bool
    replies: Callable[[Sequence[Job]], Awaitable[list[Reply]]]


def cases_of(
    workload: Workload, plains: Sequence[rivals.PlainModel], client: StreamClient
) -> list[Case]:
    """All of them, in the order they run in every round."""
    alone, many = workload.num_requests_alone, workload.num_streams
    num_tokens = workload.num_new_tokens

    async def loop(jobs: Sequence[Job]) -> list[Reply]:
        return [reply for job in jobs for reply in rivals.decode(plains[0], [job], num_tokens)]

    async def library(jobs: Sequence[Job]) -> list[Reply]:
        return [rivals.generate(plains[0], job, num_tokens) for job in jobs]

    async def batch(jobs: Sequence[Job]) -> list[Reply]:
        return rivals.decode(plains[0], jobs, num_tokens)

    async def mixture(jobs: Sequence[Job]) -> list[Reply]:
        return [rivals.mix(plains, job, num_tokens) for job in jobs]

    def served(ask: Ask, num_streams: int, *others: str) -> Case:
        async def replies(jobs: Sequence[Job]) -> list[Reply]:
            return await client.replies(jobs, num_streams, num_tokens, ask)

        num_jobs = alone if num_streams == 1 else num_streams
        return Case(f"Cuvée {title(ask, num_streams)}", others, num_jobs, True, replies)

    full_batch = f"{LOOP}, batch of {many}"
    return [
        Case("transformers generate", (LOOP,), alone, False, library),
        Case(LOOP, (), alone, False, loop),
        served(workload.one_member, 1, LOOP),
        Case(MIX, (), alone, False, mixture),
        served(BY_TOKEN, 1, MIX),
        Case(full_batch, (LOOP,), many, False, batch),
        served(workload.one_member, many, LOOP, full_batch),
        served(BY_RESPONSE, many, LOOP, full_batch),
        served(BY_TOKEN, many, MIX, full_batch),
    ]


def title(ask: Ask, num_streams: int) -> str:
    """What is asked for, by how many."""
    return f"{ask.name}, {num_streams} stream{'' if num_streams == 1 else 's'}"
