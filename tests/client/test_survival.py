"""Replies outlive their routers: killed for good in mid-stream, and the caller sees no trace."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from cluster.client import AsyncClient, Client, Patience, Piece, Reply
from cluster.errors import Unavailable
from cluster.router.core import Router
from cluster.router.edge import Edge
from tests.client.routers import router_processes
from tests.rig import Rig, running

pytestmark = pytest.mark.asyncio(loop_scope="module")

TINY = "dtype: float32, kv_memory: 32MiB"
PAIR = "members: {austen: 0.5, kjv: 0.5}"
SPEC = f"""
version: 1
members:
  austen: {{model: embedded:tiny-austen, {TINY}}}
  kjv: {{model: embedded:tiny-kjv, {TINY}}}
  bytes: {{model: embedded:tiny-bytes, {TINY}}}
blends:
  tokens: {{method: mixture, {PAIR}}}
  unlike: {{method: mixture, span: word, members: {{austen: 0.5, bytes: 0.5}}}}
  adaptive: {{method: mixture, adapt: {{floor: 0.05}}, {PAIR}}}
  mean: {{method: ensemble, candidates: 32, {PAIR}}}
  contrast: {{method: contrast, beta: 0.4, members: {{austen: expert, kjv: amateur}}}}
  letters: {{method: ensemble, unit: byte, members: {{austen: 0.5, bytes: 0.5}}}}
  sure: {{method: route, gate: {{by: confidence, first: austen}}, threshold: 0.3, {PAIR}}}
  likely: {{method: choose, rank: likelihood, {PAIR}}}
  team: {{method: fuse, members: {{austen: proposer, bytes: proposer, kjv: fuser}}}}
limits: {{max_new_tokens: 400, lease_timeout_s: 5}}
"""
BLENDS = ["tokens", "unlike", "adaptive", "mean", "contrast", "letters", "sure", "likely", "team"]
PROMPT = "It is a truth"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rig() -> AsyncIterator[Rig]:
    async with running(SPEC) as rig:
        yield rig


def asked(blend: str, num_tokens: int = 60) -> dict[str, Any]:
    return {"blend": blend, "seed": 3, "max_tokens": num_tokens, "ignore_eos": True}


def parts(reply: Reply) -> tuple[Any, ...]:
    """What must be the same; what it cost may not be."""
    tokens = [(t.member, t.position, t.id, t.bytes) for t in reply.tokens]
    return reply.text, tokens, reply.outcome.finish_reason, reply.outcome.seed


async def another_edge(rig: Rig) -> Edge:
    """One more router over the same members."""
    edge = Edge(Router(rig.spec, rig.members, rig.rankers))
    await edge.start("127.0.0.1", 0)
    while not edge.router.knows_all_members:
        await asyncio.sleep(0.01)
    return edge


async def at_rest(rig: Rig) -> None:
    while rig.num_held() != (0, 0):
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("blend", BLENDS)
async def test_a_stream_goes_on_at_another_address(rig: Rig, blend: str) -> None:
    doomed = await another_edge(rig)
    addresses = [f"127.0.0.1:{edge.port}" for edge in (doomed, rig.edge)]
    async with AsyncClient(addresses) as client:
        pieces = []
        async with client.stream(PROMPT, **asked(blend)) as stream:
            if blend in ("likely", "team"):  # what is chosen, or proposed, is not streamed
                doom = asyncio.create_task(stopped(doomed, after_s=0.05))
            async for piece in stream:
                pieces.append(piece)
                if len(pieces) == 5 and blend != "likely":
                    await doomed.stop(0)
            assert stream.outcome is not None
            disturbed = Reply.of(pieces, stream.outcome)
            assert stream.num_streams > 1
        if blend in ("likely", "team"):
            await doom
        undisturbed = await client.generate(PROMPT, **asked(blend))
    assert parts(disturbed) == parts(undisturbed)
    await at_rest(rig)


async def stopped(edge: Edge, after_s: float) -> None:
    await asyncio.sleep(after_s)
    await edge.stop(0)


async def test_a_router_killed_for_good_leaves_no_trace_in_the_stream(
    rig: Rig, tmp_path: Path
) -> None:
    """Two share a port; the one that has the stream is killed, and the other one goes on."""
    async with router_processes(rig, SPEC, tmp_path) as routers:
        first, port = await routers.start()
        async with AsyncClient(f"127.0.0.1:{port}") as client:
            undisturbed = {
                blend: await client.generate(PROMPT, **asked(blend, 120))
                for blend in ("tokens", "unlike", "mean")
            }
            await routers.start(port)  # no connection has come to it yet

            async def disturbed(blend: str, killing: asyncio.Event) -> tuple[Reply, int]:
                pieces: list[Piece] = []
                stream = client.stream(PROMPT, **asked(blend, 120))
                async for piece in stream:
                    pieces.append(piece)
                    if len(pieces) == 10:
                        speaking.add(blend)
                    if len(speaking) == 3 and not killing.is_set():
                        killing.set()
                        routers.kill(first)
                    await asyncio.sleep(0)
                assert stream.outcome is not None
                return Reply.of(pieces, stream.outcome), stream.num_streams

            speaking: set[str] = set()
            killing = asyncio.Event()
            found = await asyncio.gather(*(disturbed(blend, killing) for blend in undisturbed))
    for (reply, num_streams), whole in zip(found, undisturbed.values(), strict=True):
        assert parts(reply) == parts(whole)
        assert num_streams > 1
    await at_rest(rig)  # what the killed one held has come back as well


async def test_programs_that_block_survive_as_well(rig: Rig, tmp_path: Path) -> None:
    async with router_processes(rig, SPEC, tmp_path) as routers:
        (first, port), (_, other) = await asyncio.gather(routers.start(), routers.start())
        servers = [f"127.0.0.1:{port}", f"127.0.0.1:{other}"]
        told = await asyncio.to_thread(blocking, servers, lambda: routers.kill(first))
        assert parts(told[0]) == parts(told[1])
    await at_rest(rig)


def blocking(servers: list[str], kill: Callable[[], None]) -> tuple[Reply, Reply]:
    """A reply whose router is killed on the way, and the same without."""
    with Client(servers) as client:
        pieces = []
        with client.stream(PROMPT, **asked("tokens", 150)) as stream:
            for piece in stream:
                pieces.append(piece)
                if len(pieces) == 20:
                    kill()
            assert stream.num_streams > 1
            assert stream.outcome is not None
        return Reply.of(pieces, stream.outcome), client.generate(PROMPT, **asked("tokens", 150))


async def test_it_gives_up_where_nobody_comes_back(rig: Rig) -> None:
    doomed = await another_edge(rig)
    patience = Patience(max_tries=4, first_delay_s=0.01)
    async with AsyncClient(f"127.0.0.1:{doomed.port}", patience=patience) as client:
        stream = client.stream(PROMPT, **asked("tokens", 150))
        await anext(stream)
        await doomed.stop(0)
        with pytest.raises(Unavailable):
            await stream.reply()
        assert stream.num_streams == 5
        with pytest.raises(Unavailable):  # nothing has begun: it is not waited for
            await client.generate(PROMPT)
    await at_rest(rig)


async def test_leaving_a_stream_frees_everything(rig: Rig) -> None:
    address = f"127.0.0.1:{rig.edge.port}"
    async with AsyncClient(address) as client:
        async with client.stream(PROMPT, **asked("tokens", 400)) as stream:
            await anext(stream)
            assert rig.num_held() != (0, 0)
        await at_rest(rig)
        task = asyncio.create_task(client.generate(PROMPT, **asked("mean", 400)))
        while rig.num_held() == (0, 0):
            await asyncio.sleep(0.001)
        task.cancel()
        await at_rest(rig)

    def leave() -> int:
        with Client(address) as client, client.stream(PROMPT, **asked("tokens", 400)) as stream:
            next(stream)
            return threading.get_ident() + os.getpid()

    await asyncio.to_thread(leave)
    await at_rest(rig)
