"""The client for programs on asyncio: `cluster.client.blocking` with awaits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from typing import Any, Unpack

import grpc

from cluster.client import options as asking
from cluster.client.blocking import DEFAULT_SERVER
from cluster.client.connection import CHANNEL_OPTIONS, Deadline, Servers
from cluster.client.options import Options, Prompt, ScoreOptions
from cluster.client.patience import Patience
from cluster.client.replies import Outcome, Piece, Reply
from cluster.client.resumable import Resumable
from cluster.client.served import Blend, Score, TokenCount, counts_of
from cluster.client.status import translated
from cluster.errors import Unavailable
from cuvee.v1 import blend_pb2, blend_pb2_grpc, generation_pb2_grpc
from cuvee.v1 import generation_pb2 as pb


class AsyncStream:
    """A reply as it comes. Leaving it ends it at the server, too."""

    def __init__(
        self, messages: AsyncGenerator[pb.StreamGenerateResponse, None], resumable: Resumable
    ) -> None:
        self.outcome: Outcome | None = None  # once the last piece has come
        self._resumable = resumable
        self._messages = messages

    @property
    def seed(self) -> int:
        """The same request with this seed gives the same reply."""
        return self._resumable.seed

    @property
    def num_streams(self) -> int:
        """How many streams it took so far; more than 1: a server was lost."""
        return self._resumable.num_streams

    async def reply(self) -> Reply:
        """Wait for the rest; gives all that has not been read before."""
        pieces = [piece async for piece in self]
        assert self.outcome is not None, "a stream without an error ends with its outcome"
        return Reply.of(pieces, self.outcome)

    async def close(self) -> None:
        """End it."""
        await self._messages.aclose()

    def __aiter__(self) -> AsyncStream:
        return self

    async def __anext__(self) -> Piece:
        while True:
            with translated():
                message = await anext(self._messages)
            if message.HasField("outcome"):
                self.outcome = Outcome.of(message.outcome)
            if message.text_delta or message.tokens:
                return Piece.of(message)

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()


class AsyncClient:
    """Asks servers that serve the same cluster; errors are those of `cluster.errors`."""

    def __init__(
        self,
        server: str | Sequence[str] = DEFAULT_SERVER,
        *,
        api_key: str | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        patience: Patience = Patience(),  # noqa: B008
    ) -> None:
        """`server`: host:port, a gRPC target, or several that are tried in turn."""
        self._servers = Servers.at(server, api_key, credentials)
        self._patience = patience
        self._channels = [self._channel(address) for address in self._servers.addresses]

    def _channel(self, address: str) -> grpc.aio.Channel:
        if self._servers.credentials is None:
            return grpc.aio.insecure_channel(address, CHANNEL_OPTIONS)
        return grpc.aio.secure_channel(address, self._servers.credentials, CHANNEL_OPTIONS)

    def stream(self, prompt: Prompt, **options: Unpack[Options]) -> AsyncStream:
        """A reply piece by piece, the same whatever becomes of the servers on the way."""
        request = asking.generation_request(prompt, options)
        resumable = Resumable(request, self._patience, num_servers=len(self._channels))
        return AsyncStream(self._messages(resumable, options.get("timeout_s")), resumable)

    async def generate(self, prompt: Prompt, **options: Unpack[Options]) -> Reply:
        """A whole reply."""
        async with self.stream(prompt, **options) as stream:
            return await stream.reply()

    async def score(
        self, prompt: Prompt, continuation: str, **options: Unpack[ScoreOptions]
    ) -> Score:
        """How likely a given text is, under each member and the blend."""
        request = asking.score_request(prompt, continuation, options)
        return Score.of(
            await self._call(lambda n: self._generation(n).Score, request, options.get("timeout_s"))
        )

    async def count_tokens(
        self, prompt: Prompt, *, blend: str = "", timeout_s: float | None = None
    ) -> dict[str, TokenCount]:
        """How long an input is, by member."""
        request = asking.count_request(prompt, blend)
        return counts_of(
            await self._call(lambda n: self._generation(n).CountTokens, request, timeout_s)
        )

    async def blends(self, *, timeout_s: float | None = None) -> list[Blend]:
        """What is served, in the blend file's order."""
        response = await self._call(
            lambda n: self._blends(n).ListBlends, blend_pb2.ListBlendsRequest(), timeout_s
        )
        return list(map(Blend.of, response.blends))

    async def close(self) -> None:
        """End all streams and leave."""
        for channel in self._channels:
            await channel.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def _messages(
        self, resumable: Resumable, timeout_s: float | None
    ) -> AsyncGenerator[pb.StreamGenerateResponse, None]:
        """The messages of one reply, from as many streams as it takes; raises grpc.RpcError."""
        deadline = Deadline(timeout_s)
        while True:
            stub = self._generation(resumable.num_streams)
            call = stub.StreamGenerate(
                resumable.next_request(), timeout=deadline.left_s, metadata=self._servers.metadata
            )
            try:
                async for message in call:
                    yield resumable.take(message)
                return
            except grpc.RpcError as failure:
                delay_s = resumable.delay_after(failure, deadline.left_s)
                if delay_s is None:
                    raise
            finally:
                call.cancel()
            await asyncio.sleep(delay_s)

    async def _call(
        self, method: Callable[[int], Any], request: Any, timeout_s: float | None
    ) -> Any:
        """One answer, from the first server that is there."""
        deadline = Deadline(timeout_s)
        for number in range(len(self._channels) - 1):
            with suppress(Unavailable), translated():
                return await method(number)(
                    request, timeout=deadline.left_s, metadata=self._servers.metadata
                )
        with translated():
            return await method(len(self._channels) - 1)(
                request, timeout=deadline.left_s, metadata=self._servers.metadata
            )

    def _generation(self, number: int) -> generation_pb2_grpc.GenerationServiceAsyncStub:
        channel = self._channels[number % len(self._channels)]
        return generation_pb2_grpc.GenerationServiceStub(channel)

    def _blends(self, number: int) -> blend_pb2_grpc.BlendServiceAsyncStub:
        channel = self._channels[number % len(self._channels)]
        return blend_pb2_grpc.BlendServiceStub(channel)
