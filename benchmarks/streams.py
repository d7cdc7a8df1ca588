"""A client of the public edge that notes when each token comes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from types import TracebackType

import grpc

from benchmarks.figures import Reply
from benchmarks.workload import Ask, Job
from cuvee.v1 import generation_pb2 as pb
from cuvee.v1 import generation_pb2_grpc


class StreamClient:
    """Asks for replies on one connection, some of them at one time."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.aio.insecure_channel(address, [("grpc.enable_http_proxy", 0)])
        self._stub: generation_pb2_grpc.GenerationServiceAsyncStub = (
            generation_pb2_grpc.GenerationServiceStub(self._channel)
        )

    async def __aenter__(self) -> StreamClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._channel.close()

    async def replies(
        self, jobs: Sequence[Job], num_streams: int, num_tokens: int, ask: Ask
    ) -> list[Reply]:
        """All jobs, each stream taking the next one when its last is done."""
        left = iter(jobs)
        streams = (self._stream(left, num_tokens, ask) for _ in range(num_streams))
        return [reply for replies in await asyncio.gather(*streams) for reply in replies]

    async def _stream(self, jobs: Iterator[Job], num_tokens: int, ask: Ask) -> list[Reply]:
        return [await self._reply(job, num_tokens, ask) for job in jobs]

    async def _reply(self, job: Job, num_tokens: int, ask: Ask) -> Reply:
        request = pb.StreamGenerateRequest(
            blend=ask.blend,
            prompt=job.prompt,
            sampling=pb.Sampling(temperature=1.0, seed=job.seed),
            stopping=pb.Stopping(max_tokens=num_tokens, ignore_eos=True),
            overrides=pb.BlendOverrides(member=ask.member),
        )
        arrivals_s: list[float] = []
        usage = pb.Usage()
        num_messages = num_bytes = 0
        sent_s = time.perf_counter()
        async for response in self._stub.StreamGenerate(request):
            arrivals_s += [time.perf_counter()] * len(response.tokens)
            usage.MergeFrom(response.outcome.usage)
            num_messages += 1
            num_bytes += response.ByteSize()
        assert len(arrivals_s) == num_tokens, f"{len(arrivals_s)} tokens came"
        return Reply(
            sent_s,
            tuple(arrivals_s),
            num_passes=sum(used.forward_passes for used in usage.members),
            num_processed=sum(used.processed_tokens for used in usage.members),
            num_cached=sum(used.cached_tokens for used in usage.members),
            num_messages=num_messages,
            num_bytes=num_bytes,
        )
