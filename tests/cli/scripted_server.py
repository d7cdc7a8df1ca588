"""A server that says what a test wants said, over real gRPC on a free port."""

from __future__ import annotations

import _thread
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc

from cluster.errors import CuveeError, NotFound
from cluster.router.status import rich_status, status_code
from cuvee.v1 import blend_pb2, blend_pb2_grpc, generation_pb2_grpc
from cuvee.v1 import generation_pb2 as pb

DETAILS_KEY = "grpc-status-details-bin"


def make_blend(
    name: str = "duo", members: Iterable[str] = ("ann", "bob"), *, is_chat: bool = True
) -> blend_pb2.Blend:
    """A blend of members with equal weights."""
    names = list(members)
    return blend_pb2.Blend(
        name=name,
        description="Two of them",
        method="mixture",
        span=pb.Span(num_tokens=1),
        members=[
            blend_pb2.BlendMember(
                name=member,
                weight=1 / len(names),
                model=f"scripted:{member}",
                max_context=2048,
                vocabulary="bytes",
                has_chat_template=is_chat,
            )
            for member in names
        ],
        revision="abc123",
        exchange_kind=blend_pb2.EXCHANGE_KIND_TOKEN_IDS,
        default_sampling=pb.Sampling(temperature=0.8),
        max_tokens=1024,
    )


def make_pieces(
    *spoken: tuple[str, bytes], text: str | None = None
) -> list[pb.StreamGenerateResponse]:
    """A stream of one token a message, its text released with it, then the outcome.

    With `text`, no token releases any; all text comes at the end.
    """
    pieces = []
    members = dict.fromkeys(member for member, _ in spoken)
    for position, (member, data) in enumerate(spoken):
        token = pb.Token(member=member, bytes=data, id=data[0], position=position, logprob=-1.5)
        delta = "" if text is not None else data.decode()
        pieces.append(pb.StreamGenerateResponse(request_id="r1", text_delta=delta, tokens=[token]))
    usage = pb.Usage(
        prompt_tokens=3,
        completion_tokens=len(spoken),
        members=[
            pb.MemberUsage(
                member=name,
                drawn_tokens=sum(member == name for member, _ in spoken),
                processed_tokens=10,
                forward_passes=4,
            )
            for name in members
        ],
    )
    outcome = pb.Outcome(
        finish_reason=pb.FINISH_REASON_MAX_TOKENS, usage=usage, seed=7, blend="duo"
    )
    last = pb.StreamGenerateResponse(request_id="r1", text_delta=text or "", outcome=outcome)
    return [*pieces, last]


@dataclass
class Script:
    """What the server says, and what it was asked."""

    pieces: list[pb.StreamGenerateResponse] = field(default_factory=list)
    error: CuveeError | None = None
    error_after: int = 0  # pieces that come before the error
    lose_after: int | None = None  # pieces that come before the server is lost, once
    interrupt_after: int | None = None  # pieces that come before Ctrl-C is pressed
    painted: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    cancelled: threading.Event = field(default_factory=threading.Event)  # a call, by its caller
    blends: list[blend_pb2.Blend] = field(default_factory=lambda: [make_blend()])
    requests: list[pb.StreamGenerateRequest] = field(default_factory=list)
    address: str = ""


class _Generation(generation_pb2_grpc.GenerationServiceServicer):
    def __init__(self, script: Script) -> None:
        self._script = script

    def StreamGenerate(  # noqa: N802
        self, request: pb.StreamGenerateRequest, context: Any
    ) -> Iterator[pb.StreamGenerateResponse]:
        self._script.requests.append(request)
        if self._script.interrupt_after is not None:
            yield from self._interrupted(context)
            return
        if self._script.lose_after is not None:
            yield pb.StreamGenerateResponse(start=pb.Start(blend="duo", blend_revision="abc123"))
            yield from self._script.pieces[: self._script.lose_after]
            self._script.pieces = self._script.pieces[self._script.lose_after :]
            self._script.lose_after = None
            context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        error = self._script.error
        yield from self._script.pieces[: self._script.error_after if error else None]
        if error:
            refuse(error, context)

    def _interrupted(self, context: Any) -> Iterator[pb.StreamGenerateResponse]:
        """Some pieces; once the client has painted them, Ctrl-C there while it waits for more."""
        script, context_ended = self._script, self._script.cancelled
        num_pieces, script.interrupt_after = script.interrupt_after or 0, None
        context.add_callback(context_ended.set)
        yield from script.pieces[:num_pieces]
        for _ in range(num_pieces):
            script.painted.acquire(timeout=10)
        _thread.interrupt_main()
        context_ended.wait(10)


class _Blends(blend_pb2_grpc.BlendServiceServicer):
    def __init__(self, script: Script) -> None:
        self._script = script

    def ListBlends(self, request: Any, context: Any) -> Any:  # noqa: N802
        blends = self._script.blends
        return blend_pb2.ListBlendsResponse(blends=blends, default_blend="duo")

    def GetBlend(self, request: Any, context: Any) -> Any:  # noqa: N802
        wanted = request.name or "duo"
        found = [blend for blend in self._script.blends if blend.name == wanted]
        if not found:
            refuse(NotFound("UNKNOWN_BLEND", f"got {wanted!r}", field="blend"), context)
        return blend_pb2.GetBlendResponse(blend=found[0])


def refuse(error: CuveeError, context: Any) -> None:
    """Abort as the real server does."""
    status = rich_status(error)
    context.set_trailing_metadata(((DETAILS_KEY, status.SerializeToString()),))
    context.abort(status_code(error), status.message)


@contextmanager
def serving(script: Script) -> Iterator[Script]:
    """Serve the script until the context ends."""
    with ThreadPoolExecutor(4) as pool:
        server = grpc.server(pool)
        generation_pb2_grpc.add_GenerationServiceServicer_to_server(
            _Generation(script),  # type: ignore[abstract]  # gRPC has defaults for the rest
            server,
        )
        blend_pb2_grpc.add_BlendServiceServicer_to_server(_Blends(script), server)
        script.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        try:
            yield script
        finally:
            server.stop(None).wait()
