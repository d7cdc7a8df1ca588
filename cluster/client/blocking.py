"""The client for programs that block."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Unpack

import grpc

from cluster.client import options as asking
from cluster.client.connection import CHANNEL_OPTIONS, Deadline, Metadata, Servers
from cluster.client.options import Options, Prompt, ScoreOptions
from cluster.client.patience import Patience
from cluster.client.replies import Outcome, Piece, Reply
from cluster.client.resumable import Resumable
from cluster.client.served import Blend, Score, TokenCount, counts_of
from cluster.client.status import translated
from cluster.errors import Unavailable
from cuvee.v1 import blend_pb2, blend_pb2_grpc, generation_pb2_grpc
from cuvee.v1 import generation_pb2 as pb

if TYPE_CHECKING:  # at run time the class takes no arguments
    _OpenStream = grpc.UnaryStreamMultiCallable[pb.StreamGenerateRequest, pb.StreamGenerateResponse]

DEFAULT_SERVER = "127.0.0.1:9000"


class Messages:
    """The messages of one reply, from as many streams as it takes; raises grpc.RpcError."""

    def __init__(
        self,
        server: Callable[[int], _OpenStream],
        resumable: Resumable,
        timeout_s: float | None,
        metadata: Metadata = (),
    ) -> None:
        """`server` gives what to ask, by how many streams there were before."""
        self._server = server
        self._resumable = resumable
        self._deadline = Deadline(timeout_s)
        self._metadata = metadata
        self._call: grpc.RpcContext | None = None
        self._is_cancelled = threading.Event()

    def __iter__(self) -> Iterator[pb.StreamGenerateResponse]:
        resumable, deadline = self._resumable, self._deadline
        while True:
            call = self._server(resumable.num_streams)(
                resumable.next_request(), timeout=deadline.left_s, metadata=self._metadata
            )
            self._call = call
            try:
                if self._is_cancelled.is_set():
                    call.cancel()
                for message in call:
                    yield resumable.take(message)
                return
            except grpc.RpcError as failure:
                delay_s = resumable.delay_after(failure, deadline.left_s)
                if delay_s is None or self._is_cancelled.wait(delay_s):
                    raise
            finally:
                call.cancel()

    def cancel(self) -> None:
        """End it soon; any thread may."""
        self._is_cancelled.set()
        if self._call is not None:
            self._call.cancel()


class Stream:
    """A reply as it comes. Leaving it ends it at the server, too."""

    def __init__(self, messages: Messages, resumable: Resumable) -> None:
        self.outcome: Outcome | None = None  # once the last piece has come
        self._resumable = resumable
        self._messages = iter(messages)

    @property
    def seed(self) -> int:
        """The same request with this seed gives the same reply."""
        return self._resumable.seed

    @property
    def num_streams(self) -> int:
        """How many streams it took so far; more than 1: a server was lost."""
        return self._resumable.num_streams

    def reply(self) -> Reply:
        """Wait for the rest; gives all that has not been read before."""
        pieces = list(self)
        assert self.outcome is not None, "a stream without an error ends with its outcome"
        return Reply.of(pieces, self.outcome)

    def close(self) -> None:
        """End it."""
        self._messages.close()  # type: ignore[attr-defined]  # a generator has it

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Piece:
        while True:
            with translated():
                message = next(self._messages)
            if message.HasField("outcome"):
                self.outcome = Outcome.of(message.outcome)
            if message.text_delta or message.tokens:
                return Piece.of(message)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class Client:
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

    def _channel(self, address: str) -> grpc.Channel:
        if self._servers.credentials is None:
            return grpc.insecure_channel(address, CHANNEL_OPTIONS)
        return grpc.secure_channel(address, self._servers.credentials, CHANNEL_OPTIONS)

    def stream(self, prompt: Prompt, **options: Unpack[Options]) -> Stream:
        """A reply piece by piece, the same whatever becomes of the servers on the way."""
        request = asking.generation_request(prompt, options)
        resumable = Resumable(request, self._patience, num_servers=len(self._channels))
        return Stream(
            Messages(
                lambda number: self._generation(number).StreamGenerate,
                resumable,
                options.get("timeout_s"),
                self._servers.metadata,
            ),
            resumable,
        )

    def generate(self, prompt: Prompt, **options: Unpack[Options]) -> Reply:
        """A whole reply."""
        with self.stream(prompt, **options) as stream:
            return stream.reply()

    def score(self, prompt: Prompt, continuation: str, **options: Unpack[ScoreOptions]) -> Score:
        """How likely a given text is, under each member and the blend."""
        request = asking.score_request(prompt, continuation, options)
        return Score.of(
            self._call(lambda n: self._generation(n).Score, request, options.get("timeout_s"))
        )

    def count_tokens(
        self, prompt: Prompt, *, blend: str = "", timeout_s: float | None = None
    ) -> dict[str, TokenCount]:
        """How long an input is, by member."""
        request = asking.count_request(prompt, blend)
        return counts_of(self._call(lambda n: self._generation(n).CountTokens, request, timeout_s))

    def blends(self, *, timeout_s: float | None = None) -> list[Blend]:
        """What is served, in the blend file's order."""
        response = self._call(
            lambda n: self._blends(n).ListBlends, blend_pb2.ListBlendsRequest(), timeout_s
        )
        return list(map(Blend.of, response.blends))

    def close(self) -> None:
        """End all streams and leave."""
        for channel in self._channels:
            channel.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _call(self, method: Callable[[int], Any], request: Any, timeout_s: float | None) -> Any:
        """One answer, from the first server that is there."""
        deadline = Deadline(timeout_s)
        for number in range(len(self._channels) - 1):
            with suppress(Unavailable), translated():
                return method(number)(
                    request, timeout=deadline.left_s, metadata=self._servers.metadata
                )
        with translated():
            return method(len(self._channels) - 1)(
                request, timeout=deadline.left_s, metadata=self._servers.metadata
            )

    def _generation(self, number: int) -> generation_pb2_grpc.GenerationServiceStub:
        channel = self._channels[number % len(self._channels)]
        return generation_pb2_grpc.GenerationServiceStub(channel)

    def _blends(self, number: int) -> blend_pb2_grpc.BlendServiceStub:
        return blend_pb2_grpc.BlendServiceStub(self._channels[number % len(self._channels)])
