"""A client of the public edge that notes when each token comes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from types import TracebackType

import grpc

from cluster.cli.credentials import Credentials
from cuvee.v1 import generation_pb2 as pb
from cuvee.v1 import generation_pb2_grpc
from deployments.bench.figures import Reply
from deployments.bench.workload import Ask, Job, Subject


class StreamClient:
    """Asks for replies on one connection, some of them at one time."""

    def __init__(self, address: str, credentials: Credentials | None = None) -> None:
        shown, options = credentials or Credentials(), [("grpc.enable_http_proxy", 0)]
        if shown.is_tls:
            secured = grpc.ssl_channel_credentials(
                shown.authorities, shown.certificate_key, shown.certificate
            )
            self._channel = grpc.aio.secure_channel(address, secured, options)
        else:
            self._channel = grpc.aio.insecure_channel(address, options)
        self._metadata = (("authorization", f"Bearer {shown.api_key}"),) if shown.api_key else ()
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

    async def replies_at(
        self, jobs: Sequence[Job], offsets_s: Sequence[float], num_tokens: int, ask: Ask
    ) -> list[Reply]:
        """Each job at its time from now on, however many are under way: an open loop.

        Who comes late, because this process was busy, waits from when it should have come.
        """
        begin_s = time.perf_counter()

        async def at(job: Job, offset_s: float) -> Reply:
            await asyncio.sleep(max(0.0, begin_s + offset_s - time.perf_counter()))
            return await self._reply(job, num_tokens, ask, sent_s=begin_s + offset_s)

        return list(await asyncio.gather(*map(at, jobs, offsets_s)))

    async def reply_anew(self, job: Job, num_tokens: int, subject: Subject) -> Reply:
        """A mixture by token as one writes it over ordinary servers: a request for each token.

        Every request has the whole text so far as its prompt, and pins who speaks there.
        """
        sent_s, text = time.perf_counter(), job.prompt
        parts: list[Reply] = []
        for position in range(num_tokens):
            speaker = subject.speaker(job.seed, position)
            ask = Ask(speaker, subject.ask.blend, speaker)
            told: list[str] = []
            seed = job.seed * num_tokens + position
            parts.append(await self._reply(Job(text, seed), 1, ask, told=told))
            text += "".join(told)
        return Reply(
            sent_s,
            tuple(part.arrivals_s[-1] for part in parts),
            num_passes=sum(part.num_passes for part in parts),
            num_processed=sum(part.num_processed for part in parts),
            num_cached=sum(part.num_cached for part in parts),
            num_messages=sum(part.num_messages for part in parts),
            num_bytes=sum(part.num_bytes for part in parts),
        )

    async def _reply(
        self,
        job: Job,
        num_tokens: int,
        ask: Ask,
        *,
        sent_s: float | None = None,
        told: list[str] | None = None,
    ) -> Reply:
        request = pb.StreamGenerateRequest(
            blend=ask.blend,
            prompt=job.prompt,
            sampling=pb.Sampling(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=job.seed),
            stopping=pb.Stopping(max_tokens=num_tokens, ignore_eos=True),
            overrides=pb.BlendOverrides(member=ask.member),
        )
        arrivals_s: list[float] = []
        usage = pb.Usage()
        num_messages = num_bytes = 0
        sent_s = time.perf_counter() if sent_s is None else sent_s
        async for response in self._stub.StreamGenerate(request, metadata=self._metadata):
            arrivals_s += [time.perf_counter()] * len(response.tokens)
            usage.MergeFrom(response.outcome.usage)
            num_messages += 1
            num_bytes += response.ByteSize()
            if told is not None:
                told.append(response.text_delta)
        num_told = usage.completion_tokens
        assert len(arrivals_s) == num_told, f"{len(arrivals_s)} tokens came, {num_told} are told"
        return Reply(
            sent_s,
            tuple(arrivals_s),
            num_passes=sum(used.forward_passes for used in usage.members),
            num_processed=sum(used.processed_tokens for used in usage.members),
            num_cached=sum(used.cached_tokens for used in usage.members),
            num_messages=num_messages,
            num_bytes=num_bytes,
        )
