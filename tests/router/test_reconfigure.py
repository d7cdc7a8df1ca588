"""Another spec for a router that runs: replies under way keep their law, the next have the new."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from cluster.errors import NotFound, Unavailable
from cluster.members.base import Prompt
from cluster.router.answers import Outcome, ReplyToken
from cluster.router.core import Router
from cluster.router.requests import GenerationRequest, Sampling, Stopping
from cluster.spec import parse_spec
from cuvee.v1 import blend_pb2
from tests.rig import SPEC, Rig, running

TOKENS = "tokens: {method: mixture, span: token, members: {austen: 0.6, kjv: 0.4}}"
ONE_KJV = TOKENS.replace("austen: 0.6, kjv: 0.4", "kjv: 1")
TEMPERED = TOKENS.replace("span: token", "span: token, sampling: {temperature: 0.5}")
NUM_TOKENS = 60


def request(blend: str = "tokens", seed: int = 3) -> GenerationRequest:
    stopping = Stopping(max_tokens=NUM_TOKENS, ignore_eos=True)
    return GenerationRequest(blend, Prompt(text="It is a truth"), Sampling(seed=seed), stopping)


async def reply(router: Router, blend: str = "tokens") -> tuple[list[ReplyToken], Outcome]:
    updates = [update async for update in router.generate(request(blend))]
    outcome = updates[-1].outcome
    assert outcome is not None
    return [token for update in updates for token in update.tokens], outcome


async def reconfigure(rig: Rig, text: str) -> None:
    await rig.router.reconfigure(parse_spec(text), rig.members)


async def test_a_reply_under_way_keeps_its_law_and_the_next_one_has_the_new() -> None:
    async with running() as rig:
        old = rig.spec.revision_of("tokens")
        undisturbed, _ = await reply(rig.router)
        tokens: list[ReplyToken] = []
        outcome = None
        async for update in rig.router.generate(request()):
            if not tokens:
                await reconfigure(rig, SPEC.replace(TOKENS, ONE_KJV))
            tokens += update.tokens
            outcome = update.outcome or outcome
        assert outcome is not None
        assert [t.token.id for t in tokens] == [t.token.id for t in undisturbed]
        assert {t.member for t in tokens} == {"austen", "kjv"}
        assert outcome.revision == old
        after, outcome = await reply(rig.router)
        assert {token.member for token in after} == {"kjv"}
        assert outcome.revision == rig.router.spec.revision_of("tokens") != old
        described = await rig.blends.GetBlend(blend_pb2.GetBlendRequest(name="tokens"))
        assert [(m.name, m.weight) for m in described.blend.members] == [("kjv", 1.0)]
        assert described.blend.revision == outcome.revision


async def test_sampling_and_limits_change_too_and_a_blend_that_is_gone_is_not_found() -> None:
    async with running() as rig:
        text = SPEC.replace(TOKENS, TEMPERED).replace("replies:", "answers:")
        await reconfigure(rig, text.replace("max_new_tokens: 400", "max_new_tokens: 50"))
        with pytest.raises(NotFound, match="expected one of: tokens, answers, mixed"):
            rig.router.blend("replies")
        with pytest.raises(Exception, match="at most 50"):
            await reply(rig.router)
        listed = await rig.blends.ListBlends(blend_pb2.ListBlendsRequest())
        assert listed.blends[0].default_sampling.temperature == 0.5
        assert listed.blends[0].max_tokens == 50


async def test_a_new_member_is_met_before_its_blend_takes_over() -> None:
    """Until then, and for ever if it never comes, the old blends are served."""
    name, blend = "  bytes: {model: embedded:tiny-bytes", "  mixed: {"
    before = "\n".join(line for line in SPEC.splitlines() if not line.startswith((name, blend)))
    async with running() as rig:
        server = rig.members["bytes"].servers.pop()
        router = Router(parse_spec(before), {n: rig.members[n] for n in ("austen", "kjv")})
        await router.learn_members()
        changing = asyncio.create_task(
            router.reconfigure(parse_spec(SPEC.replace(TOKENS, ONE_KJV)), rig.members)
        )
        await asyncio.sleep(0.05)
        assert router.ready_blends == ["tokens", "replies"]
        assert {token.member for token in (await reply(router))[0]} == {"austen", "kjv"}
        rig.members["bytes"].servers.append(server)
        await changing
        assert router.ready_blends == ["tokens", "replies", "mixed"]
        assert {token.member for token in (await reply(router))[0]} == {"kjv"}
        assert {token.member for token in (await reply(router, "mixed"))[0]} == {"austen", "bytes"}


async def test_a_method_that_needs_the_members_tokens_asks_for_them() -> None:
    async with running() as rig:
        mean = TOKENS.replace("mixture, span: token", "ensemble, exact: true")
        await reconfigure(rig, SPEC.replace(TOKENS, mean))
        tokens, _ = await reply(rig.router)
        assert len(tokens[0].shares) == 2


async def test_a_replica_that_has_become_another_model_takes_no_part_in_old_plans() -> None:
    async with running() as rig:
        rig.members["kjv"].servers = rig.members["bytes"].servers
        with pytest.raises(Unavailable, match="'kjv' has become embedded:tiny-bytes"):
            await reply(rig.router)
        assert rig.num_held() == (0, 0)
        other = SPEC.replace("kjv: {model: embedded:tiny-kjv", "kjv: {model: embedded:tiny-bytes")
        await reconfigure(rig, other)
        assert {token.member for token in (await reply(rig.router))[0]} == {"austen", "kjv"}


async def test_health_is_told_of_blends_that_come_and_go() -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    serving = health_pb2.HealthCheckResponse.SERVING
    async with running() as rig:
        health = health_pb2_grpc.HealthStub(rig.channel)

        async def status_of(blend: str) -> int:
            try:
                answer = await health.Check(health_pb2.HealthCheckRequest(service=blend))
            except grpc.aio.AioRpcError:
                return -1
            return int(answer.status)

        await reconfigure(rig, SPEC.replace("replies:", "answers:"))
        while await status_of("answers") != serving:  # the test's time limit is the only clock
            await asyncio.sleep(0.05)
        assert await status_of("replies") == health_pb2.HealthCheckResponse.NOT_SERVING
