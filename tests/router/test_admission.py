"""Bounded queues, fair turns, and what a key may ask for: decisions, then the whole path."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from cluster.access.caller import Caller, KeyLimits, current_caller
from cluster.errors import DeadlineExceeded, Overloaded
from cluster.members.base import Prompt
from cluster.members.scripted import ScriptedMember
from cluster.router.admission import Admission
from cluster.router.core import Router
from cluster.router.requests import GenerationRequest, Sampling, Stopping
from cluster.spec import LimitsSpec, parse_spec
from cuvee.v1 import generation_pb2 as pb
from tests.rig import SPEC, running

COSTS = {"small": 1.0, "large": 8.0}


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def limits(running: int = 1, waiting: int = 100, wait_s: float = 60) -> LimitsSpec:
    return LimitsSpec(
        max_concurrent_generations=running, max_waiting_generations=waiting, max_wait_s=wait_s
    )


def caller(key: str, **given: float) -> Caller:
    return Caller(key, limits=KeyLimits(**given))  # type: ignore[arg-type]


async def in_turn(admission: Admission, *asks: tuple[Caller, str]) -> list[str]:
    """All wait before the first one begins; each costs its member 10 tokens. Gives who began."""
    order: list[str] = []

    async def one(key: Caller, member: str) -> None:
        async with admission.admitted(key, limits(), COSTS) as bill:
            order.append(key.key_id)
            bill.add(member, 10)
            await asyncio.sleep(0)

    async with admission.admitted(caller("door"), limits(), COSTS) as bill:
        bill.add("large", 1000)  # nobody stands where the door does
        tasks = [asyncio.create_task(one(*ask)) for ask in asks]
        while admission.num_waiting < len(asks):
            await asyncio.sleep(0)
    await asyncio.gather(*tasks)
    return order


async def test_the_least_served_key_is_next_however_many_the_others_have_waiting() -> None:
    many, few = (caller("many"), "small"), (caller("few"), "small")
    order = await in_turn(Admission(Clock()), *[many] * 6, *[few] * 3)
    assert order == ["many", "few", "many", "few", "many", "few", "many", "many", "many"]


async def test_turns_follow_weights() -> None:
    heavy, light = (caller("heavy", weight=3.0), "small"), (caller("light"), "small")
    order = await in_turn(Admission(Clock()), *[light] * 20, *[heavy] * 20)
    assert order[:16].count("heavy") == 12


async def test_turns_follow_what_members_cost() -> None:
    """One key asks the large member, eight times as costly, and gets an eighth of the turns."""
    small, large = (caller("small"), "small"), (caller("large"), "large")
    order = await in_turn(Admission(Clock()), *[small] * 40, *[large] * 40)
    assert order[:36].count("large") == 4


async def test_a_key_that_rested_has_nothing_saved_up() -> None:
    admission = Admission(Clock())
    busy, rested = (caller("busy"), "small"), (caller("rested"), "small")
    await in_turn(admission, *[busy] * 50)
    order = await in_turn(admission, *[busy, rested] * 4)
    assert order[:6].count("rested") == 3


async def test_what_finds_no_room_to_wait_is_refused_with_a_delay() -> None:
    clock = Clock()
    admission = Admission(clock)
    async with admission.admitted(caller("a"), limits(), COSTS):
        clock.now_s += 4
    async with admission.admitted(caller("a"), limits(), COSTS):
        with pytest.raises(Overloaded, match="the most this router takes") as refused:
            async with admission.admitted(caller("a"), limits(waiting=0), COSTS):
                pass
    assert refused.value.reason == "TOO_MANY_GENERATIONS"
    assert refused.value.retry_delay_s == pytest.approx(4)


async def test_who_waits_too_long_is_refused_and_leaves_no_trace() -> None:
    admission = Admission(Clock())
    async with admission.admitted(caller("a"), limits(), COSTS):
        with pytest.raises(Overloaded) as refused:
            async with admission.admitted(caller("b"), limits(wait_s=0.01), COSTS):
                pass
        assert refused.value.reason == "WAITED_TOO_LONG"
        assert (admission.num_running, admission.num_waiting) == (1, 0)
    assert admission.num_running == 0


async def test_a_deadline_that_must_pass_before_the_turn_comes_is_told_at_once() -> None:
    clock = Clock()
    admission = Admission(clock)
    async with admission.admitted(caller("a"), limits(), COSTS):
        clock.now_s += 10
    async with admission.admitted(caller("a"), limits(), COSTS):
        with pytest.raises(DeadlineExceeded, match="for about 10 s; the deadline is in 3 s"):
            async with admission.admitted(caller("b"), limits(), COSTS, time_left_s=3):
                pass


async def test_who_leaves_while_it_waits_gives_its_turn_to_the_next() -> None:
    admission, order = Admission(Clock()), []

    async def one(key: str) -> None:
        async with admission.admitted(caller(key), limits(), COSTS):
            order.append(key)

    async with admission.admitted(caller("a"), limits(), COSTS):
        leaving, staying = (asyncio.create_task(one(key)) for key in ("leaves", "stays"))
        while admission.num_waiting < 2:
            await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.wait([leaving])
    await staying
    assert order == ["stays"]
    assert (admission.num_running, admission.num_waiting) == (0, 0)


async def test_a_key_has_its_own_limit_of_generations() -> None:
    admission, one = Admission(Clock()), caller("one", max_concurrent=1)
    async with admission.admitted(one, limits(9), COSTS):
        with pytest.raises(Overloaded, match="its limit is 1") as refused:
            async with admission.admitted(one, limits(9), COSTS):
                pass
        assert refused.value.reason == "KEY_CONCURRENCY"
        async with admission.admitted(caller("two", max_concurrent=1), limits(9), COSTS):
            pass
    async with admission.admitted(one, limits(9), COSTS):
        pass


async def test_a_key_in_debt_waits_until_it_is_paid_by_what_members_really_cost() -> None:
    clock = Clock()
    admission, key = Admission(clock), caller("key", cost_per_minute=60)
    async with admission.admitted(key, limits(9), COSTS) as bill:
        bill.add("large", 10)  # 80 of 60: 20 in debt, a second each
    with pytest.raises(Overloaded) as refused:
        async with admission.admitted(key, limits(9), COSTS):
            pass
    assert refused.value.reason == "KEY_RATE"
    assert refused.value.retry_delay_s == pytest.approx(20)
    clock.now_s += 20.1
    async with admission.admitted(key, limits(9), COSTS) as bill:
        bill.add("small", 1)
    clock.now_s += 3600
    async with admission.admitted(key, limits(9), COSTS) as bill:
        bill.add("small", 61)  # an hour's rest saves one minute up, not sixty
    with pytest.raises(Overloaded):
        async with admission.admitted(key, limits(9), COSTS):
            pass


BUSY = SPEC.replace(
    "limits: {",
    "limits: {max_concurrent_generations: 1, max_waiting_generations: 1, ",
)
LONG = pb.StreamGenerateRequest(prompt="It is", stopping={"max_tokens": 300, "ignore_eos": True})


async def test_a_full_router_refuses_with_a_retry_delay_and_serves_those_that_wait() -> None:
    async with running(BUSY) as rig:
        first = rig.generation.StreamGenerate(LONG)
        assert await first.read() is not grpc.aio.EOF
        second = rig.generation.Generate(
            pb.GenerateRequest(prompt="It is", stopping={"max_tokens": 2})
        )
        while rig.router.num_active < 2:
            await asyncio.sleep(0.01)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await rig.generation.Generate(pb.GenerateRequest(prompt="It is"))
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        status = status_pb2.Status.FromString(
            dict(refused.value.trailing_metadata() or ())["grpc-status-details-bin"]  # type: ignore[arg-type]
        )
        (retry,) = (d for d in status.details if d.Is(error_details_pb2.RetryInfo.DESCRIPTOR))
        info = error_details_pb2.RetryInfo()
        retry.Unpack(info)
        assert info.retry_delay.ToMilliseconds() >= 100
        first.cancel()
        assert (await second).outcome.usage.completion_tokens == 2


async def test_a_callers_debt_is_what_members_processed() -> None:
    """The limit is a few tokens: the first generation is let in, the next is told to wait."""
    members = {name: ScriptedMember(name, b"abc ") for name in ("cheap", "dear")}
    spec = parse_spec(
        "version: 1\n"
        "members:\n"
        "  cheap: {model: embedded:tiny-kjv}\n"
        "  dear: {model: embedded:tiny-kjv, cost: 100}\n"
        "blends: {both: {method: mixture, span: 2, members: {cheap: 1, dear: 1}}}\n"
    )
    router = Router(spec, members)
    await router.learn_members()
    request = GenerationRequest(
        "both", Prompt(text="a"), Sampling(seed=3), Stopping(max_tokens=8)
    )  # the dear one has six of the tokens
    current_caller.set(caller("key", cost_per_minute=150))
    async for _ in router.generate(request):
        pass
    with pytest.raises(Overloaded, match="tokens' cost a minute") as refused:
        async for _ in router.generate(request):
            pass
    assert refused.value.reason == "KEY_RATE"
