"""The replica's data-plane port: one gRPC stream per router carries the steps of all sequences."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from typing import TYPE_CHECKING, Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cluster.errors import CuveeError, InternalError
from cluster.members import news, packed, wire
from cluster.members.base import Event, Failed, ReplicaState, StepEvent
from cluster.members.guard import LeaseInterceptor, refuse, shown_lease
from cluster.members.leases import HeldLease, LeaseGrant, LeaseTable, not_live
from cluster.members.opening import ReplicaSequence
from cluster.members.pressure import PressureGauge
from cluster.members.replica import Replica
from cluster.members.silence import Hearing
from cuvee.v1 import member_pb2 as pb
from cuvee.v1 import member_pb2_grpc

if TYPE_CHECKING:  # at run time the class takes no arguments
    _Context = grpc.aio.ServicerContext[Any, Any]

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
FULL_BYTES = 4 * 1024 * 1024  # of distributions; then a message waits for no more
_PAUSE_PER_SEQUENCE_S, _LONGEST_PAUSE_S, _UNNOTICED_PAUSE_S = 50e-6, 0.002, 0.0004

_MAX_REPLICAS_PER_HOST = 64


def write_pause_s(num_sequences: int) -> float:
    """How long an exchange is silent after a message, so that the next one holds more; or 0.

    Reading or writing a message costs the router some 0.1 ms, whatever is in it. Passes are longer
    than this, so what a pass brings, and what is said to it, never waits: only stragglers do.
    """
    wanted = num_sequences * _PAUSE_PER_SEQUENCE_S
    return 0.0 if wanted < _UNNOTICED_PAUSE_S else min(wanted, _LONGEST_PAUSE_S)


class MemberServer(member_pb2_grpc.MemberServiceServicer):
    """Serves one replica's exchange and grants the leases that open it."""

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self.leases = LeaseTable()
        self._gauge = self.gauge()
        self.address = ""
        options = [
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            ("grpc.so_reuseport", 0),
        ]
        guard = LeaseInterceptor(self.leases)
        self._server = grpc.aio.server(interceptors=(guard,), options=options)
        member_pb2_grpc.add_MemberServiceServicer_to_server(self, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(_Health(replica), self._server)

    def gauge(self) -> PressureGauge:
        """One of its own for whoever reads it again and again."""
        engine = self.replica.engine
        return PressureGauge(lambda: (engine.times, engine.load(), len(self.leases)))

    def state(self) -> ReplicaState:
        """How the replica is, on average since this was last asked."""
        return ReplicaState(self.address, self.replica.num_sequences, self._gauge.read())

    async def start(self, host: str, first_port: int = 0) -> None:
        """Listen at the given address, on the first port from this one on that is free; 0: any."""
        port = self._bind(host, first_port)
        self.address = f"{host}:{port}"
        await self._server.start()

    def _bind(self, host: str, first_port: int) -> int:
        num_tries = _MAX_REPLICAS_PER_HOST if first_port else 1
        for port in range(first_port, first_port + num_tries):
            try:
                return self._server.add_insecure_port(f"{host}:{port}")
            except RuntimeError:  # somebody listens there
                continue
        raise InternalError("NO_FREE_PORT", f"no port of {host} is free from {first_port} on")

    async def stop(self) -> None:
        """Close the port; every stream on it ends, and with them their leases."""
        await self._server.stop(grace=None)

    async def lease(self) -> AsyncGenerator[LeaseGrant, None]:
        """Yield one grant, then stay until the lease ends on either side."""
        lease = self.leases.grant()
        try:
            yield LeaseGrant(self.address, lease.id, lease.secret, self.replica.info)
            await lease.ended.wait()
        finally:
            self.leases.end(lease)

    async def Exchange(  # noqa: N802 (gRPC's name)
        self,
        request_iterator: AsyncIterator[pb.ExchangeRequest],
        context: _Context,
    ) -> AsyncIterator[pb.ExchangeResponse]:
        """Carry steps one way and tokens the other until either side leaves."""
        lease = shown_lease(context.invocation_metadata(), self.leases)
        if lease is None:  # it has ended since the call was let in
            await refuse(request_iterator, context)
            return
        stream = _Stream(self)
        stream.leases.add(lease)
        reader = asyncio.create_task(stream.read(request_iterator))
        watch = asyncio.create_task(stream.watch())
        try:
            while (response := await stream.next_response()) is not None:
                yield response
                if pause_s := write_pause_s(stream.num_sequences):
                    await asyncio.sleep(pause_s)
        finally:
            watch.cancel()
            reader.cancel()
            await asyncio.gather(reader, watch, return_exceptions=True)
            stream.close()

    async def GetVocabulary(  # noqa: N802
        self, request: pb.GetVocabularyRequest, context: _Context
    ) -> pb.GetVocabularyResponse:
        """Tell what the member's token ids stand for."""
        return packed.tokens_to_proto(self.replica.tokens)


class _Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """grpc.health.v1 for probes: whether the replica can work."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica

    async def Check(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: _Context
    ) -> health_pb2.HealthCheckResponse:
        """Of the whole server; it has no parts that anybody should know of."""
        if request.service:
            await context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        answer = health_pb2.HealthCheckResponse
        is_alive = self._replica.is_alive
        return answer(status=answer.SERVING if is_alive else answer.NOT_SERVING)


class _Stream:
    """One router's stream: its sequences, and the news that waits to be written."""

    def __init__(self, server: MemberServer) -> None:
        self.leases: set[HeldLease] = set()
        self._server = server
        self._sequences: dict[int, ReplicaSequence] = {}
        self._waiting = pb.ExchangeResponse()
        self._num_waiting_bytes = 0  # of distributions: all else is small
        self._full: deque[pb.ExchangeResponse] = deque()  # messages to write before that
        self._is_waiting = asyncio.Event()
        self._is_over = False
        self._hearing = Hearing()

    @property
    def num_sequences(self) -> int:
        """Open ones."""
        return len(self._sequences)

    async def read(self, requests: AsyncIterator[pb.ExchangeRequest]) -> None:
        """Handle messages until the router closes the stream."""
        try:
            async for request in requests:
                self._hearing.hear()
                self._handle(request)
        finally:
            self._end()

    async def watch(self) -> None:
        """End the stream when the router has fallen silent."""
        while await self._hearing.listen():
            pass
        self._end()

    async def next_response(self) -> pb.ExchangeResponse | None:
        """What is new, once something is, a message at a time; None when the router is gone."""
        await self._is_waiting.wait()
        if self._is_over:
            return None
        if self._full:
            return self._full.popleft()
        self._is_waiting.clear()
        return self._taken()

    def _taken(self) -> pb.ExchangeResponse:
        response, self._waiting = self._waiting, pb.ExchangeResponse()
        self._num_waiting_bytes = 0
        return response

    def _end(self) -> None:
        self._is_over = True
        self._is_waiting.set()

    def close(self) -> None:
        """End everything that came over this stream."""
        for lease in self.leases:
            self._server.leases.end(lease)
        self.leases.clear()
        self._sequences.clear()

    def _handle(self, request: pb.ExchangeRequest) -> None:
        for opening in request.opens:
            self._open(opening)
        for step in request.steps:
            self._step(step)
        for number in request.cancels:
            if sequence := self._sequences.get(number):
                sequence.cancel()
        for number in request.closes:
            if sequence := self._sequences.pop(number, None):
                sequence.close()
        if request.ping:
            self._waiting.pong = request.ping
            self._is_waiting.set()

    def _open(self, opening: pb.OpenSequence) -> None:
        number = opening.sequence
        lease = self._server.leases.find(opening.lease_id, opening.lease_secret)
        if lease is None:
            self._emit(number, Failed(not_live()))
            return
        try:
            if not lease.has_room:
                raise InternalError("LEASE_IN_USE", "a lease has room for one sequence at a time")
            start = wire.start_from_proto(opening)
        except CuveeError as error:
            self._emit(number, Failed(error))
            return
        self.leases = {held for held in self.leases if not held.ended.is_set()} | {lease}
        sequence = self._server.replica.open(start, lambda event: self._emit(number, event))
        lease.sequences.add(sequence)
        self._sequences[number] = sequence

    def _step(self, message: pb.Step) -> None:
        sequence = self._sequences.get(message.sequence)
        if sequence is None or not sequence.is_open:  # its lease has ended on this side
            self._emit(message.sequence, Failed(not_live()))
            return
        try:
            step = wire.step_from_proto(message)
        except CuveeError as error:
            self._emit(message.sequence, Failed(error))
            return
        sequence.step(step)

    def _emit(self, number: int, event: Event) -> None:
        news.add_event(self._waiting, number, event)
        if isinstance(event, StepEvent) and event.distribution is not None:
            self._num_waiting_bytes += packed.num_bytes(event.distribution)
            if self._num_waiting_bytes >= FULL_BYTES:
                self._full.append(self._taken())
        self._is_waiting.set()
