"""The router's end of the data plane: one stream to each replica it has leases on."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import grpc

from cluster.errors import ReplicaLost
from cluster.members import news, packed, wire
from cluster.members.base import Emit, Event, Failed, Opened, SequenceStart, Step, Tokens
from cluster.members.guard import LEASE_ID_KEY, LEASE_SECRET_KEY
from cluster.members.leases import LeaseGrant
from cluster.members.server import MAX_MESSAGE_BYTES, write_pause_s
from cluster.members.silence import SILENCE_LIMIT_S, Hearing
from cuvee.v1 import member_pb2 as pb
from cuvee.v1 import member_pb2_grpc

_VOCABULARY_TIMEOUT_S = 10.0
_LAST_WORDS_S = 0.5

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class ExchangeCounts:
    """Exact totals of one exchange; pings and pongs are counted apart."""

    messages_sent: int = 0
    messages_received: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    steps_sent: int = 0
    pings_sent: int = 0


class Exchange:
    """Writes what is ready as one message, hands out what comes back, notices a dead replica."""

    def __init__(
        self, grant: LeaseGrant, on_silence: Callable[[str], None] = lambda address: None
    ) -> None:
        self.counts = ExchangeCounts()
        self._on_silence = on_silence
        self.address = grant.address
        self.is_lost = False
        self._why_lost = ""
        options = [
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            ("grpc.use_local_subchannel_pool", 1),
        ]
        self._channel = grpc.aio.insecure_channel(grant.address, options=options)
        self._stub = member_pb2_grpc.MemberServiceStub(self._channel)
        self._call = self._stub.Exchange(metadata=_credentials(grant))
        self._numbers = itertools.count(1)
        self._emits: dict[int, Emit] = {}
        self._waiting = pb.ExchangeRequest()
        self._is_waiting = asyncio.Event()
        self._hearing = Hearing()
        self._running = asyncio.create_task(self._run())

    @property
    def has_ended(self) -> bool:
        """Whether it is lost, and nothing of it is left to close."""
        return self._running.done()

    def open(self, start: SequenceStart, emit: Emit, grant: LeaseGrant) -> RemoteSequence:
        """Begin a sequence under one of the replica's leases."""
        number = next(self._numbers)
        if self.is_lost:
            emit(Failed(_lost(self.address, self._why_lost)))
        else:
            self._emits[number] = emit
            self._waiting.opens.append(
                wire.start_to_proto(start, number, grant.lease_id, grant.secret)
            )
            self._is_waiting.set()
        return RemoteSequence(self, number)

    async def tokens(self, grant: LeaseGrant) -> Tokens:
        """The member's tokens; raises ReplicaLost."""
        request, metadata = pb.GetVocabularyRequest(), _credentials(grant)
        try:
            answer = await self._stub.GetVocabulary(
                request, metadata=metadata, timeout=_VOCABULARY_TIMEOUT_S
            )
        except grpc.aio.AioRpcError as error:
            raise _lost(self.address, _reason(error)) from None
        except asyncio.CancelledError:  # also what a call gets whose channel is closed meanwhile
            task = asyncio.current_task()
            if not self.is_lost or (task is not None and task.cancelling()):
                raise
            raise _lost(self.address, self._why_lost) from None
        return packed.tokens_from_proto(answer)

    def send(self, fill: Callable[[pb.ExchangeRequest], None]) -> None:
        """Add to the next message."""
        fill(self._waiting)
        self._is_waiting.set()

    def forget(self, number: int) -> None:
        """Stop hearing of a sequence."""
        if self._emits.pop(number, None) is not None:
            self.send(lambda request: request.closes.append(number))

    async def close(self) -> None:
        """Leave; sequences still open are lost."""
        self._running.cancel()
        with suppress(asyncio.CancelledError):
            await self._running
        self._lose("the router left")  # again, since a task cancelled at once has never run
        await self._channel.close()

    async def _run(self) -> None:
        """Write, read and ping until one of them ends; then the replica counts as lost."""
        loops = [asyncio.create_task(work()) for work in (self._read, self._ping, self._write)]
        reading, _, writing = loops
        why = "the router left"
        try:
            await asyncio.wait(loops, return_when=asyncio.FIRST_COMPLETED)
            if writing.done():  # why the other side ended the stream, only the reader hears
                await asyncio.wait({reading}, timeout=_LAST_WORDS_S)
            error = next(loop.exception() for loop in loops if loop.done())
            why = _reason(error)
            level = logging.WARNING if self._emits else logging.INFO  # nobody minds a spare one
            _log.log(level, "%s; sequences on it: %d", _lost(self.address, why), len(self._emits))
            if isinstance(error, TimeoutError):
                self._on_silence(self.address)
        finally:
            self._lose(why)
            for loop in loops:
                loop.cancel()
            await asyncio.gather(*loops, return_exceptions=True)
            await self._channel.close()

    async def _write(self) -> None:
        while True:
            await self._is_waiting.wait()
            self._is_waiting.clear()
            request, self._waiting = self._waiting, pb.ExchangeRequest()
            if request.opens or request.steps or request.cancels or request.closes:
                self.counts.messages_sent += 1
                self.counts.bytes_sent += request.ByteSize()
                self.counts.steps_sent += len(request.steps)
            await self._call.write(request)
            if pause_s := write_pause_s(len(self._emits)):
                await asyncio.sleep(pause_s)

    async def _read(self) -> None:
        while (response := await self._call.read()) is not grpc.aio.EOF:
            assert isinstance(response, pb.ExchangeResponse)
            self._hearing.hear()
            if response.opened or response.events or response.failed:
                self.counts.messages_received += 1
                self.counts.bytes_received += response.ByteSize()
            for opened in response.opened:
                self._emit(opened.sequence, Opened(opened.prompt_tokens, opened.prompt_digest))
            for event in response.events:
                self._emit(event.sequence, news.step_event_from_proto(event))
            for failed in response.failed:
                self._emit(failed.sequence, news.failed_from_proto(failed))

    async def _ping(self) -> None:
        while await self._hearing.listen():
            self.counts.pings_sent += 1
            self._waiting.ping = self.counts.pings_sent
            self._is_waiting.set()
        raise TimeoutError(f"it has been silent for {SILENCE_LIMIT_S:g} s")

    def _emit(self, number: int, event: Event) -> None:
        if emit := self._emits.get(number):
            emit(event)

    def _lose(self, why: str) -> None:
        self.is_lost = True
        self._why_lost = self._why_lost or why
        emits, self._emits = self._emits, {}
        for emit in emits.values():
            emit(Failed(_lost(self.address, why)))


class RemoteSequence:
    """A sequence on the other side of an exchange."""

    def __init__(self, exchange: Exchange, number: int) -> None:
        self._exchange = exchange
        self._number = number

    def step(self, step: Step) -> None:
        """Begin a step."""
        message = wire.step_to_proto(step, self._number)
        self._exchange.send(lambda request: request.steps.append(message))

    def cancel(self) -> None:
        """End the running step soon."""
        self._exchange.send(lambda request: request.cancels.append(self._number))

    def close(self) -> None:
        """Forget the sequence."""
        self._exchange.forget(self._number)


@dataclass(frozen=True, slots=True)
class LeaseTransport:
    """The exchange with a replica, as one lease may use it; begun with the first sequence."""

    pool: ExchangePool
    grant: LeaseGrant

    def open(self, start: SequenceStart, emit: Emit) -> RemoteSequence:
        """Begin a sequence."""
        return self.pool.exchange(self.grant).open(start, emit, self.grant)

    async def tokens(self) -> Tokens:
        """The member's tokens; raises ReplicaLost."""
        return await self.pool.exchange(self.grant).tokens(self.grant)


class ExchangePool:
    """The router's exchanges, one per replica."""

    def __init__(self, on_silence: Callable[[str], None] = lambda address: None) -> None:
        """`on_silence` is told the address of a replica that has fallen silent."""
        self._on_silence = on_silence
        self._exchanges: dict[str, Exchange] = {}

    def exchange(self, grant: LeaseGrant) -> Exchange:
        """The stream to the replica that granted a lease, or a new one under that lease."""
        exchange = self._exchanges.get(grant.address)
        if exchange is None or exchange.is_lost:
            self._forget_ended()
            exchange = self._exchanges[grant.address] = Exchange(grant, self._on_silence)
        return exchange

    @property
    def num_open(self) -> int:
        """How many replicas it has a stream to."""
        return sum(not exchange.is_lost for exchange in self._exchanges.values())

    @property
    def counts(self) -> ExchangeCounts:
        """Totals over all exchanges, lost ones included until the next one begins."""
        total = ExchangeCounts()
        for exchange in self._exchanges.values():
            for name in ExchangeCounts.__slots__:
                setattr(total, name, getattr(total, name) + getattr(exchange.counts, name))
        return total

    async def close(self) -> None:
        """Leave all replicas."""
        await asyncio.gather(*(exchange.close() for exchange in self._exchanges.values()))

    def _forget_ended(self) -> None:
        """Replicas come and go, each with an address of its own."""
        ended = [address for address, known in self._exchanges.items() if known.has_ended]
        for address in ended:
            del self._exchanges[address]


def _credentials(grant: LeaseGrant) -> tuple[tuple[str, str | bytes], ...]:
    return ((LEASE_ID_KEY, grant.lease_id), (LEASE_SECRET_KEY, grant.secret))


def _reason(error: BaseException | None) -> str:
    if error is None:
        return "it closed the stream"
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"
    return str(error) or type(error).__name__


def _lost(address: str, why: str) -> ReplicaLost:
    return ReplicaLost("REPLICA_LOST", f"the replica at {address} was lost: {why}")
