"""A member without any replica: the blend waits, goes on with the others, or fails; as it says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import pytest_asyncio

from cluster.members.server import MemberServer
from cuvee.v1 import generation_pb2 as pb
from tests.rig import Rig, running

pytestmark = pytest.mark.asyncio(loop_scope="module")

BLENDS = {
    "tokens": "method: mixture, span: token",
    "fours": "method: mixture, span: 4",
    "adaptive": "method: mixture, adapt: {floor: 0.05}",
    "mean": "method: ensemble, candidates: 32",
    "product": "method: ensemble, rule: product, exact: true",
    "bytes": "method: ensemble, unit: byte",
    "follows": "method: ensemble, exact: true, adapt: {floor: 0.05}",
    "sure": "method: route, gate: {by: confidence, first: austen}, threshold: 0.3",
}
MEMBERS = "members: {austen: 0.5, kjv: 0.5}"
POLICIES = ("renormalise", "fail", "wait")
SPEC = (
    "version: 1\nmembers:\n"
    "  austen: {model: embedded:tiny-austen, dtype: float32, kv_memory: 32MiB}\n"
    "  kjv: {model: embedded:tiny-kjv, dtype: float32, kv_memory: 32MiB}\n"
    "blends:\n"
    + "\n".join(
        f"  {name}-{policy}: {{{text}, on_member_loss: {policy}, {MEMBERS}}}"
        for name, text in BLENDS.items()
        for policy in POLICIES
    )
    + "\n  panel: {method: choose, rank: likelihood, quorum: 1, on_member_loss: fail,"
    f" {MEMBERS}}}\n"
    "limits: {lease_timeout_s: 20}\n"
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rig() -> AsyncIterator[Rig]:
    async with running(SPEC) as rig:
        yield rig


def request(blend: str, **fields: Any) -> pb.StreamGenerateRequest:
    given: dict[str, Any] = {"blend": blend, "prompt": "It is a truth", "sampling": {"seed": 3}}
    given |= {"stopping": {"max_tokens": 60, "ignore_eos": True}}
    return pb.StreamGenerateRequest(**given | fields)


class Lost:
    """A member's only replica, taken away in the middle, and maybe brought back."""

    def __init__(self, rig: Rig, member: str) -> None:
        self._rig, self._member = rig, member
        self._servers = rig.members[member].servers

    async def take(self) -> None:
        """End its port, as if the process had died."""
        (server,) = self._servers
        self._servers.clear()
        await server.stop()

    async def bring_back(self) -> None:
        """The same model behind another port."""
        (before,) = self._rig.servers[self._member]
        server = MemberServer(before.replica)
        await server.start("127.0.0.1")
        self._rig.servers[self._member][:] = [server]
        self._servers[:] = [server]


async def disturbed(
    rig: Rig, wanted: pb.StreamGenerateRequest, after: int, member: str, back_s: float | None = None
) -> list[pb.StreamGenerateResponse]:
    """The stream of a request that loses a member's last replica after so many tokens."""
    lost, pieces, num_tokens = Lost(rig, member), [], 0
    returning = None
    try:
        async for piece in rig.generation.StreamGenerate(wanted):
            pieces.append(piece)
            before, num_tokens = num_tokens, num_tokens + len(piece.tokens)
            if before < after <= num_tokens:
                await lost.take()
                if back_s is not None:
                    returning = asyncio.create_task(returned(lost, back_s))
    finally:
        if returning is None:
            await lost.bring_back()
        else:
            await returning
    return pieces


async def returned(lost: Lost, after_s: float) -> None:
    await asyncio.sleep(after_s)
    await lost.bring_back()


def tokens_of(pieces: list[pb.StreamGenerateResponse]) -> list[pb.Token]:
    return [token for piece in pieces for token in piece.tokens]


@pytest.mark.parametrize("name", BLENDS)
async def test_the_others_go_on_and_the_stream_says_so(rig: Rig, name: str) -> None:
    wanted = request(f"{name}-renormalise")
    undisturbed = [piece async for piece in rig.generation.StreamGenerate(wanted)]
    pieces = await disturbed(rig, wanted, 8, "kjv")
    tokens, outcome = tokens_of(pieces), pieces[-1].outcome
    (notice,) = [notice for piece in pieces for notice in piece.notices]
    assert notice.kind == pb.NOTICE_KIND_MEMBER_GONE
    assert notice.member == "kjv"
    assert "no replica left" in notice.message
    assert list(outcome.notices) == [notice]
    assert len(tokens) == outcome.usage.completion_tokens == 60
    at = notice.position
    assert 8 <= at < 60
    assert [t.id for t in tokens[:at]] == [t.id for t in tokens_of(undisturbed)[:at]]
    assert {token.member for token in tokens[at:]} == {"austen"}
    assert not any(share.member == "kjv" for token in tokens[at:] for share in token.shares)
    assert not undisturbed[-1].outcome.notices


@pytest.mark.parametrize("name", BLENDS)
async def test_another_router_goes_on_without_the_member_that_was_gone(rig: Rig, name: str) -> None:
    wanted = request(f"{name}-renormalise")
    pieces = await disturbed(rig, wanted, 8, "kjv")
    tokens, start = tokens_of(pieces), pieces[0].start
    (notice,) = pieces[-1].outcome.notices
    for num in (notice.position - 3, notice.position, notice.position + 9):
        again = pb.StreamGenerateRequest()
        again.CopyFrom(wanted)
        again.resumption.blend_revision = start.blend_revision
        for token in tokens[:num]:
            again.resumption.tokens.add(
                member=token.member, id=token.id, bytes=token.bytes, weights=token.weights
            )
        again.resumption.notices.extend([notice] if num >= notice.position else [])
        rest = [piece async for piece in rig.generation.StreamGenerate(again)]
        if num >= notice.position:  # before that, the member is there again, and speaks
            assert [t.id for t in tokens_of(rest)] == [t.id for t in tokens[num:]]
            assert list(rest[-1].outcome.notices) == [notice]
        assert rest[-1].outcome.usage.completion_tokens == 60


async def test_a_notice_that_no_such_reply_can_have_is_refused(rig: Rig) -> None:
    for blend, notice in (
        ("tokens-wait", pb.Notice(kind=1, member="kjv", position=0)),
        ("tokens-renormalise", pb.Notice(kind=1, member="nobody", position=0)),
        ("tokens-renormalise", pb.Notice(kind=1, member="kjv", position=1)),
        ("tokens-renormalise", pb.Notice(member="kjv")),
    ):
        wanted = request(blend, resumption={"notices": [notice]})
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in rig.generation.StreamGenerate(wanted):
                pass
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "resumption.notices" in (caught.value.details() or "")


@pytest.mark.parametrize("name", ["tokens", "mean"])
async def test_a_blend_that_begins_without_a_member_says_what_the_others_say(
    rig: Rig, name: str
) -> None:
    wanted = request(f"{name}-renormalise")
    alone = request(f"{name}-renormalise", overrides={"weights": {"austen": 1}})
    lost = Lost(rig, "kjv")
    await lost.take()
    pieces = [piece async for piece in rig.generation.StreamGenerate(wanted)]
    await lost.bring_back()
    expected = [piece async for piece in rig.generation.StreamGenerate(alone)]
    assert [n.position for piece in pieces for n in piece.notices] == [0]
    assert [t.id for t in tokens_of(pieces)] == [t.id for t in tokens_of(expected)]


@pytest.mark.parametrize("name", ["tokens", "mean", "sure"])
async def test_a_blend_that_must_not_go_on_fails_at_once(rig: Rig, name: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await disturbed(rig, request(f"{name}-fail"), 8, "kjv")
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    # Who waits until the time limit is told otherwise.
    assert "'kjv' has no replica left" in (caught.value.details() or "")


@pytest.mark.parametrize("name", ["tokens", "mean", "adaptive"])
async def test_a_blend_that_waits_goes_on_with_the_same_text(rig: Rig, name: str) -> None:
    wanted = request(f"{name}-wait")
    undisturbed = [piece async for piece in rig.generation.StreamGenerate(wanted)]
    pieces = await disturbed(rig, wanted, 8, "kjv", back_s=0.3)
    assert [t.id for t in tokens_of(pieces)] == [t.id for t in tokens_of(undisturbed)]
    assert not pieces[-1].outcome.notices
    leases = {usage.member: usage.leases for usage in pieces[-1].outcome.usage.members}
    assert leases == {"austen": 1, "kjv": 2}


async def test_when_nobody_is_left_the_reply_ends_with_the_members_name(rig: Rig) -> None:
    lost = [Lost(rig, "austen"), Lost(rig, "kjv")]
    for one in lost:
        await one.take()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in rig.generation.StreamGenerate(request("tokens-renormalise")):
            pass
    for one in lost:
        await one.bring_back()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert rig.num_held() == (0, 0)


async def test_a_panel_that_does_not_wait_chooses_among_those_that_are_there(rig: Rig) -> None:
    lost = Lost(rig, "kjv")
    await lost.take()
    wanted = request("panel", stopping={"max_tokens": 8})
    pieces = [piece async for piece in rig.generation.StreamGenerate(wanted)]
    await lost.bring_back()
    states = {p.member: p.state for p in pieces[-1].outcome.proposals}
    assert states == {"austen": pb.PROPOSAL_STATE_COMPLETE, "kjv": pb.PROPOSAL_STATE_FAILED}
