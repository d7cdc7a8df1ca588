"""Replicas over fake models, and short ways to speak to one."""

from __future__ import annotations

import string
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import cache

from cluster.engine.base import Chunk
from cluster.engine.engine import Engine
from cluster.engine.fake import FakeRunner, next_token
from cluster.engine.thread import EngineThread
from cluster.engine.types import EngineLoad, Output, SamplingParams
from cluster.members.base import (
    Form,
    Lease,
    MemberInfo,
    Prompt,
    RunEnd,
    SequenceStart,
    Step,
    StepToken,
)
from cluster.members.replica import Replica
from cluster.members.seat import Seat
from cluster.models.byte_level import byte_tokenizer
from cluster.text.member import MemberText
from tests.text.tokenizer_factory import make

Likeliest = Callable[[Sequence[int]], int]
MAX_CONTEXT = 2048


@cache
def member_text(name: str) -> MemberText:
    """The text of a member with a tokenizer of that make, or of one token a byte."""
    return MemberText(byte_tokenizer(MAX_CONTEXT) if name == "bytes" else make(name)[0])


def chatter(text: MemberText) -> Likeliest:
    """Goes on with a word or letter fixed by all tokens before; never ends its turn."""
    letters = frozenset(string.ascii_letters.encode() + b" ")
    ids = [i for i, data in enumerate(text.token_bytes) if data and letters.issuperset(data)]
    return lambda before: ids[next_token(before, len(ids))]


def slowly(chunks: Sequence[Chunk]) -> None:
    """Comes before passes, so that an endless run lasts for seconds."""
    time.sleep(0.002)


def make_replica(
    name: str,
    likeliest: Likeliest | None = None,
    *,
    before_pass: Callable[[Sequence[Chunk]], None] = lambda chunks: None,
    max_context: int = MAX_CONTEXT,
    vocab_size: int | None = None,
    lead: float = 1.0,
) -> Replica:
    """A replica of the member `name` over a fake model; needs a running loop, and a `stop`.

    `vocab_size` is the model's, by default the tokenizer's.
    """
    text = member_text(name)
    runner = FakeRunner(
        vocab_size=vocab_size or text.vocabulary.size,
        num_pages=512,
        page_size=8,
        max_context=max_context,
        before_pass=before_pass,
        likeliest=likeliest or chatter(text),
        lead=lead,
    )

    def start(report: Callable[[list[Output]], None]) -> EngineThread:
        thread = EngineThread(Engine(runner, num_ids=text.vocabulary.size), report)
        thread.start()
        return thread

    info = MemberInfo(name, f"fake:{name}", text.vocabulary.fingerprint, max_context, True)
    return Replica(info, text, start)


@contextmanager
def stopping(*replicas: Replica) -> Iterator[None]:
    """Ends the engines' threads whatever happens."""
    try:
        yield
    finally:
        for replica in replicas:
            replica.stop()


def engine_of(replica: Replica) -> Engine:
    """What runs on the replica's thread."""
    assert isinstance(replica.engine, EngineThread)
    return replica.engine._engine


def load_of(replica: Replica) -> EngineLoad:
    """How busy the replica's engine is."""
    return engine_of(replica).load()


def start_of(
    prompt: str = "Once upon a time", form: Form = Form.TEXT, **changes: object
) -> SequenceStart:
    """A sequence that takes the likeliest tokens."""
    fixed: dict[str, object] = {"sampling": SamplingParams(temperature=0), "seed": 1}
    return SequenceStart(Prompt(text=prompt), form, **fixed | changes)  # type: ignore[arg-type]


@dataclass
class LocalLease:
    """A hold on a replica of this process, which is its own transport."""

    transport: Replica

    @property
    def info(self) -> MemberInfo:
        return self.transport.info

    async def release(self) -> None:
        pass


@dataclass
class Said:
    """What came of one step."""

    tokens: list[StepToken] = field(default_factory=list)
    end: RunEnd | None = None

    @property
    def ids(self) -> tuple[int, ...]:
        return tuple(token.id for token in self.tokens)

    @property
    def bytes(self) -> bytes:
        return b"".join(token.bytes for token in self.tokens)


async def run(seat: Seat, step: Step) -> Said:
    """Carry out one step."""
    said = Said()
    for event in await seat.answer(step):
        said.tokens += event.tokens
        said.end = event.end
    return said


@asynccontextmanager
async def seated(lease: Replica | Lease, start: SequenceStart) -> AsyncIterator[Seat]:
    """A sequence on a replica, reached directly or through a lease, and closed at the end."""
    seat = Seat(LocalLease(lease) if isinstance(lease, Replica) else lease)
    try:
        await seat.open(start)
        yield seat
    finally:
        await seat.close()


async def told(replica: Replica, start: SequenceStart, step: Step) -> Said:
    """What a fresh sequence says to one step."""
    async with seated(replica, start) as seat:
        return await run(seat, step)
