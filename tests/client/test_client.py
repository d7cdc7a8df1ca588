"""The client's public surface, and what it makes of a server's answers."""

from __future__ import annotations

import asyncio
import math
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio

import cluster.client
from cluster.client import AsyncClient, Client, Message
from cluster.errors import (
    CuveeError,
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    Unavailable,
    Unsupported,
)
from tests.rig import Rig, running

pytestmark = pytest.mark.asyncio(loop_scope="module")

HEAVY = ("torch", "transformers", "tokenizers", "numpy", "pydantic", "yaml", "ray", "rich")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rig() -> AsyncIterator[Rig]:
    async with running() as rig:
        yield rig


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(rig: Rig) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(f"127.0.0.1:{rig.edge.port}") as client:
        yield client


def blocked(rig: Rig, ask: Callable[[Client], Any]) -> Any:
    """The same by the client that blocks, on a thread of its own."""

    def call() -> Any:
        with Client(f"127.0.0.1:{rig.edge.port}") as client:
            return ask(client)

    return asyncio.to_thread(call)


async def test_its_names_are_sorted_and_there() -> None:
    names = cluster.client.__all__
    assert names == sorted(names)
    assert all(hasattr(cluster.client, name) for name in names)


async def test_it_imports_nothing_heavy() -> None:
    program = f"""
import sys
import cluster.client
print(sorted(set({HEAVY!r}) & set(sys.modules)))
"""
    result = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


async def test_a_whole_reply_and_its_stream_are_the_same(rig: Rig, client: AsyncClient) -> None:
    options: dict[str, Any] = {"blend": "tokens", "max_tokens": 24, "temperature": 0.8}
    options["ignore_eos"] = True  # both are heard, whatever the seed
    reply = await client.generate("It is a truth", **options)
    options["seed"] = reply.outcome.seed
    async with client.stream("It is a truth", **options) as stream:
        assert stream.seed == reply.outcome.seed
        assert stream.outcome is None
        pieces = [piece async for piece in stream]
    assert "".join(piece.text for piece in pieces) == reply.text
    assert tuple(token for piece in pieces for token in piece.tokens) == reply.tokens
    assert len(reply.tokens) == reply.outcome.usage.completion_tokens
    assert {token.member for token in reply.tokens} == {"austen", "kjv"}
    assert await blocked(rig, lambda c: c.generate("It is a truth", **options).text) == reply.text
    assert stream.outcome is not None
    assert stream.outcome.finish_reason == reply.outcome.finish_reason


async def test_all_options_reach_the_server(client: AsyncClient) -> None:
    reply = await client.generate(
        "It is",
        blend="tokens",
        seed=1,
        span=3,
        weights={"austen": 1, "kjv": 3},
        stop=["\n\n"],
        min_tokens=2,
        top_p=0.9,
        top_k=50,
        min_p=0.01,
        max_tokens=9,
        num_top_candidates=2,
        logprobs=True,
        user_id="u",
        timeout_s=60,
    )
    assert all(len(token.candidates) == 2 for token in reply.tokens)
    assert all(token.logprob is not None for token in reply.tokens)
    alone = await client.generate("It is", blend="tokens", member="kjv", max_tokens=3)
    assert {token.member for token in alone.tokens} == {"kjv"}
    formed = await client.generate("It is", blend="tokens", regex=" (a|b)+\\.", max_tokens=20)
    assert set(formed.text) <= set(" ab.")
    assert (await client.generate("It is", span="word", max_tokens=3)).tokens
    chat = [Message("system", "Be brief."), Message("user", "Who are you?")]
    assert (await client.generate(chat, max_tokens=3)).tokens


async def test_scores_counts_and_blends(rig: Rig, client: AsyncClient) -> None:
    score = await client.score("It is", " a truth", blend="tokens")
    assert score.logprob is not None
    assert score.logprob == pytest.approx(math.fsum(t.logprob for t in score.mixture_tokens))
    assert score == await blocked(rig, lambda c: c.score("It is", " a truth", blend="tokens"))
    counts = await client.count_tokens("It is", blend="tokens")
    assert counts == await blocked(rig, lambda c: c.count_tokens("It is", blend="tokens"))
    assert set(counts) == {"austen", "kjv"}
    blends = await client.blends()
    assert [blend.name for blend in blends] == list(rig.spec.blends)
    assert blends == await blocked(rig, lambda c: c.blends())


async def test_errors_have_their_reason_and_field(rig: Rig, client: AsyncClient) -> None:
    async def refused(kind: type[CuveeError], **options: Any) -> CuveeError:
        with pytest.raises(kind) as caught:
            await client.generate("It is", **options)
        return caught.value

    error = await refused(NotFound, blend="none")
    assert (error.reason, error.field) == ("UNKNOWN_BLEND", "blend")
    error = await refused(InvalidRequest, top_p=7.0)
    assert (error.reason, error.field) == ("INVALID_VALUE", "sampling.top_p")
    assert error.message.startswith("got 7.0; expected")
    await refused(InvalidRequest, seed=-1)
    await refused(InvalidRequest, regex="a", json_schema="{}")
    await refused(InvalidRequest, span="page")
    await refused(DeadlineExceeded, blend="tokens", timeout_s=0.001)
    with pytest.raises(Unsupported) as caught:
        await client.generate("It is", blend="mixed", regex="a")
    assert caught.value.reason == "FORMAT_NEEDS_ONE_VOCABULARY"
    with pytest.raises(InvalidRequest):
        await blocked(rig, lambda c: c.generate(""))
    with pytest.raises(ValueError, match="got no server"):
        Client([])


async def test_the_readme_speaks_the_truth(rig: Rig, capsys: pytest.CaptureFixture[str]) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    program = readme.split("```python\n")[1].split("```")[0]
    program = program.replace("127.0.0.1:9000", f"127.0.0.1:{rig.edge.port}")
    program = program.replace('blend="demo"', 'blend="tokens"')
    await asyncio.to_thread(exec, compile(program, "README.md", "exec"), {})
    assert capsys.readouterr().out.rstrip().endswith(("max_tokens", "end_of_turn"))


async def test_servers_that_are_not_there_are_passed_over(rig: Rig) -> None:
    nobody, somebody = "127.0.0.1:1", f"127.0.0.1:{rig.edge.port}"
    async with AsyncClient([nobody, somebody]) as client:
        assert await client.blends()
        assert (await client.generate("It is", max_tokens=3)).text
    async with AsyncClient(nobody) as client:
        with pytest.raises(Unavailable):
            await client.blends()
        with pytest.raises(Unavailable):
            await client.generate("It is")


async def test_a_key_goes_with_every_call() -> None:
    """To a server that tells by its refusal whether it has seen it."""
    seen = []

    class Keys(grpc.aio.ServerInterceptor):
        async def intercept_service(self, continuation: Any, details: Any) -> Any:
            seen.append(dict(details.invocation_metadata).get("authorization"))
            return await continuation(details)

    server = grpc.aio.server(interceptors=(Keys(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with AsyncClient(f"127.0.0.1:{port}", api_key="k1") as client:
        with pytest.raises(CuveeError, match="Method not found"):
            await client.generate("It is")
        with pytest.raises(CuveeError) as caught:
            await client.blends()
    assert caught.value.reason == "UNIMPLEMENTED"
    assert seen == ["Bearer k1", "Bearer k1"]
    await server.stop(0)
