"""What a router tells of the cluster: replicas, load, and draws against weights."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from cuvee.v1 import admin_pb2, admin_pb2_grpc
from cuvee.v1 import generation_pb2 as pb
from tests.rig import SPEC, Rig, running

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rig() -> AsyncIterator[Rig]:
    async with running(SPEC, num_replicas=2) as rig:
        yield rig


async def told(rig: Rig) -> admin_pb2.GetStatusResponse:
    stub = admin_pb2_grpc.AdminServiceStub(rig.channel)
    answer: admin_pb2.GetStatusResponse = await stub.GetStatus(admin_pb2.GetStatusRequest())
    return answer


def request(**fields: object) -> pb.StreamGenerateRequest:
    given: dict[str, object] = {"blend": "tokens", "prompt": "It is"}
    given |= {"stopping": {"max_tokens": 200, "ignore_eos": True}}
    return pb.StreamGenerateRequest(**given | fields)  # type: ignore[arg-type]


async def test_replicas_tell_what_they_hold_while_a_reply_is_under_way(rig: Rig) -> None:
    call = rig.generation.StreamGenerate(request())
    while not (await call.read()).tokens:  # the first piece comes before the members do
        pass
    during = await told(rig)
    call.cancel()
    assert during.router.running == 1
    held = {m.member: sum(r.leases for r in m.replicas) for m in during.members}
    assert held == {"austen": 1, "kjv": 1, "bytes": 0}
    assert all(len(member.replicas) == 2 for member in during.members)
    addresses = {r.address for member in during.members for r in member.replicas}
    assert addresses == {server.address for server in rig.all_servers}
    assert any(r.kv_fill > 0 for member in during.members for r in member.replicas)
    assert all(0 <= r.busy <= 1 for member in during.members for r in member.replicas)
    while rig.num_held() != (0, 0):
        await asyncio.sleep(0.01)
    after = await told(rig)
    assert after.router.running == 0
    assert not any(r.leases for member in after.members for r in member.replicas)


async def test_what_was_drawn_is_counted_by_blend_and_member(rig: Rig) -> None:
    before = {blend.blend: blend for blend in (await told(rig)).blends}["tokens"]
    drawn = {share.member: share.drawn_tokens for share in before.shares}
    for seed in range(3):
        async for piece in rig.generation.StreamGenerate(request(sampling={"seed": seed})):
            for token in piece.tokens:
                drawn[token.member] += 1
    after = {blend.blend: blend for blend in (await told(rig)).blends}["tokens"]
    assert after.replies == before.replies + 3
    assert {share.member: share.drawn_tokens for share in after.shares} == drawn
    assert [share.weight for share in after.shares] == pytest.approx([0.6, 0.4])
    total = sum(drawn.values())
    assert [s.drawn_share for s in after.shares] == [n / total for n in drawn.values()]
    assert after.revision == rig.spec.revision_of("tokens")
    assert (after.takeovers, after.degraded_replies) == (0, 0)
