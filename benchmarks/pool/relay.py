"""The floor: a process that only passes each message on, from one gRPC stream to another.

What it spends on a message is what a router of Python and gRPC spends on a token before it does
anything: one message read, one written.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import grpc

from benchmarks.pool.processes import HOST
from deployments.bench.children import Child, answer_until_closed

_SERVICE = "cuvee.benchmarks.Relay"
_MESSAGE = bytes(64)  # about what a token has on the wire


@dataclass(frozen=True, slots=True)
class RelayPlan:
    """One of the two processes: the source of messages, or who passes them on."""

    cores: frozenset[int]
    interval_s: float  # between two messages of a stream
    source: str = ""  # whose messages to pass on


def run_relay(plan: RelayPlan, pipe: Connection) -> None:
    """Serve until the pipe closes; says its address first."""
    os.sched_setaffinity(0, plan.cores)
    asyncio.run(_serve(plan, pipe))


def floor_cpu_s(num_streams: int, num_messages: int, interval_s: float) -> float:
    """Processor seconds of the relay per message, with so many streams of so many messages."""
    cores = sorted(os.sched_getaffinity(0))
    first, others = frozenset(cores[:1]), frozenset(cores[1:] or cores)
    children: list[Child[float]] = []
    os.sched_setaffinity(0, others)
    try:
        children.append(Child(run_relay, RelayPlan(others, interval_s)))
        source = children[0].address()
        children.append(Child(run_relay, RelayPlan(first, interval_s, source)))
        relay, address = children[1], children[1].address()
        before = relay.ask()
        asyncio.run(_read_all(address, num_streams, num_messages))
        return (relay.ask() - before) / (num_streams * num_messages)
    finally:
        for child in reversed(children):
            child.stop()
        os.sched_setaffinity(0, cores)


async def _serve(plan: RelayPlan, pipe: Connection) -> None:
    async def produce(request: bytes, context: Any) -> AsyncIterator[bytes]:
        for _ in range(int(request)):
            await asyncio.sleep(plan.interval_s)
            yield _MESSAGE

    async def pass_on(request: bytes, context: Any) -> AsyncIterator[bytes]:
        call = _method(channel)(request)
        while (message := await call.read()) is not grpc.aio.EOF:
            yield message

    async with grpc.aio.insecure_channel(plan.source or HOST) as channel:
        method: Any = grpc.unary_stream_rpc_method_handler(pass_on if plan.source else produce)
        server = grpc.aio.server()
        handler = grpc.method_handlers_generic_handler(_SERVICE, {"Read": method})
        server.add_generic_rpc_handlers((handler,))
        port = server.add_insecure_port(f"{HOST}:0")
        await server.start()
        pipe.send(f"{HOST}:{port}")
        await answer_until_closed(pipe, lambda question: time.process_time())
        await server.stop(None)


async def _read_all(address: str, num_streams: int, num_messages: int) -> None:
    async with grpc.aio.insecure_channel(address) as channel:

        async def read() -> None:
            call = _method(channel)(str(num_messages).encode())
            num_read = sum([1 async for _ in call])
            assert num_read == num_messages, f"{num_read} messages came"

        await asyncio.gather(*(read() for _ in range(num_streams)))


def _method(channel: grpc.aio.Channel) -> Any:
    return channel.unary_stream(f"/{_SERVICE}/Read")
