"""The load generator: a process of its own, so that it shares no event loop with what it loads."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection

from cluster.cli.credentials import Credentials
from deployments.bench.children import answer_until_closed
from deployments.bench.figures import Reply
from deployments.bench.streams import StreamClient
from deployments.bench.workload import Job, Subject


@dataclass(frozen=True, slots=True)
class LoaderPlan:
    """Whom to load, and as whom."""

    address: str
    credentials: Credentials | None = None


@dataclass(frozen=True, slots=True)
class Load:
    """What clients do in one case of one round; one of three ways."""

    subjects: Sequence[Subject]  # each gets the same share of the streams
    jobs: Sequence[Job]
    num_tokens: int
    num_streams: int = 1  # a closed loop: each takes the next job when its last is done
    offsets_s: Sequence[float] = ()  # an open loop: when each job comes
    anew: bool = False  # a request for each token, one reply after another


@dataclass(frozen=True, slots=True)
class Loaded:
    """What came of it."""

    replies: Sequence[Reply]
    cpu_s: float  # of the process that asked; of a rival, of all that it runs in

    @property
    def wall_s(self) -> float:
        """From the first request to the last token."""
        begin_s = min(reply.sent_s for reply in self.replies)
        return max(reply.arrivals_s[-1] for reply in self.replies) - begin_s


def run_loader(plan: LoaderPlan, pipe: Connection) -> None:
    """Carry out loads until the pipe closes; says first that it is there."""
    asyncio.run(_answer(plan, pipe))


async def _answer(plan: LoaderPlan, pipe: Connection) -> None:
    async with StreamClient(plan.address, plan.credentials) as client:

        async def answer(load: Load) -> Loaded:
            before_s = time.process_time()
            replies = await carry_out(load, client)
            return Loaded(replies, time.process_time() - before_s)

        pipe.send(plan.address)
        await answer_until_closed(pipe, answer)


async def carry_out(load: Load, client: StreamClient) -> list[Reply]:
    """All jobs of a load, in whatever order they end."""
    jobs, first = load.jobs, load.subjects[0]
    if load.anew:
        return [await client.reply_anew(job, load.num_tokens, first) for job in jobs]
    if load.offsets_s:
        return await client.replies_at(jobs, load.offsets_s, load.num_tokens, first.ask)
    num = len(load.subjects)
    shares = await asyncio.gather(
        *(
            client.replies(jobs[i::num], load.num_streams // num, load.num_tokens, subject.ask)
            for i, subject in enumerate(load.subjects)
        )
    )
    return [reply for share in shares for reply in share]
