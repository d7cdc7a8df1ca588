"""Messages and bytes between router and replicas, exactly, from the whole path in one process.

The router of a cluster keeps these counts to itself. Here the same requests take the same way but
for Ray; all parts share one interpreter, so with many streams more is ready at once than in a
cluster, and a message carries more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from benchmarks.cases import title
from benchmarks.streams import StreamClient
from benchmarks.workload import BY_RESPONSE, BY_TOKEN, Ask, Job, Workload
from tests.rig import Rig, running


@dataclass(frozen=True, slots=True)
class WireCounts:
    """Both ways together, pings apart, the opening of sequences included; per output token."""

    case: str
    steps: float
    messages: float
    num_bytes: float


async def count_messages(workload: Workload, jobs: Iterator[Job]) -> list[WireCounts]:
    """One member, and a mixture by token; alone and at many streams."""
    asks = (workload.one_member, BY_RESPONSE, BY_TOKEN)
    async with running(workload.spec_text) as rig, StreamClient(f"127.0.0.1:{rig.edge.port}") as c:
        return [
            await _count(rig, c, workload, list(islice(jobs, num_streams)), ask)
            for ask in asks
            for num_streams in (1, workload.num_streams)
        ]


async def _count(
    rig: Rig, client: StreamClient, workload: Workload, jobs: list[Job], ask: Ask
) -> WireCounts:
    before = rig.exchanges.counts
    await client.replies(jobs, len(jobs), workload.num_new_tokens, ask)
    after = rig.exchanges.counts
    num_tokens = len(jobs) * workload.num_new_tokens
    num_messages = after.messages_sent + after.messages_received
    num_bytes = after.bytes_sent + after.bytes_received
    return WireCounts(
        case=title(ask, len(jobs)),
        steps=(after.steps_sent - before.steps_sent) / num_tokens,
        messages=(num_messages - before.messages_sent - before.messages_received) / num_tokens,
        num_bytes=(num_bytes - before.bytes_sent - before.bytes_received) / num_tokens,
    )
