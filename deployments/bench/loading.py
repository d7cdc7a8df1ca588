"""The load generator: a process of its own, so that it shares no event loop with what it loads."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection

from cluster.cli.credentials import Credentials
from deployments.bench.children import Child, answer_until_closed
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


class Loaders:
    """Several such processes, which share each load: one of them may be too slow to be a client."""

    def __init__(self, plan: LoaderPlan, num_processes: int) -> None:
        with ExitStack() as stack:
            self._children: list[Child[Loaded]] = [
                stack.enter_context(Child(run_loader, plan)) for _ in range(num_processes)
            ]
            for child in self._children:
                child.address()
            self._stack = stack.pop_all()

    def __enter__(self) -> Loaders:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    def ask(self, load: Load) -> Loaded:
        """Carry it out, all at the same time."""
        shares = shares_of(load, len(self._children))
        asked = self._children[: len(shares)]
        for child, share in zip(asked, shares, strict=True):
            child.send(share)
        loaded = [child.receive() for child in asked]
        replies = [reply for part in loaded for reply in part.replies]
        return Loaded(replies, sum(part.cpu_s for part in loaded))


def shares_of(load: Load, num_processes: int) -> list[Load]:
    """The same load by so many processes, or by as many as it has whole streams for."""
    per_process = len(load.subjects)  # streams come in groups of one for each subject
    num = min(num_processes, len(load.jobs))
    if not load.offsets_s:
        num = 1 if load.anew else min(num, max(1, load.num_streams // per_process))
    groups = load.num_streams // per_process
    return [
        replace(
            load,
            jobs=load.jobs[i::num],
            offsets_s=load.offsets_s[i::num],
            num_streams=per_process * len(range(i, groups, num)),
        )
        for i in range(num)
    ]


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
