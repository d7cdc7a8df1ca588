"""Drafts over the whole path: the same text as without, in fewer passes of those who decide."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
import pytest_asyncio
from scipy.stats import chisquare

from cluster.members.base import Draw, Prompt, Rank, StepEvent, StepToken
from cluster.router.answers import FinishReason, Outcome, ReplyToken
from cluster.router.requests import (
    GenerationRequest,
    Output,
    Overrides,
    Sampling,
    Stopping,
)
from cluster.router.resumption import ReceivedToken, Resumption
from cluster.router.speculating import Speculator
from cluster.text.grammar import OutputFormat
from tests.rig import Rig, running
from tests.router.test_law import expected as law_of_two
from tests.router.test_law import plain as plain_model

pytestmark = pytest.mark.asyncio(loop_scope="module")

TINY = "dtype: float32, kv_memory: 32MiB"
BLENDS = {
    "two": "method: mixture, members: {austen: 0.6, kjv: 0.4}",
    "three": "method: mixture, members: {austen: 0.4, kjv: 0.3, bierce: 0.3}",
    "one": "method: mixture, members: {austen: 0, kjv: 1}",
    "mean": "method: ensemble, members: {austen: 0.35, kjv: 0.65}",
    "few": "method: ensemble, candidates: 16, members: {austen: 0.35, kjv: 0.35, bierce: 0.3}",
    "product": "method: ensemble, rule: product, members: {austen: 0.35, kjv: 0.65}",
    "proxy": "method: proxy, alpha: 0.8, members: {base: base, austen: expert, kjv: anti}",
    "contrast": "method: contrast, beta: 0.5, members: {kjv: expert, austen: amateur}",
}
DRAFT = "speculate: {draft: austen, max_tokens: 5, always: true}"
SPEC = f"""
version: 1
members:
  base: {{model: embedded:tiny-base, {TINY}}}
  austen: {{model: embedded:tiny-austen, {TINY}}}
  kjv: {{model: embedded:tiny-kjv, {TINY}}}
  bierce: {{model: embedded:tiny-bierce, {TINY}}}
blends:
""" + "".join(
    f"  {name}: {{{rule}}}\n  {name}-ahead: {{{rule}, {DRAFT}}}\n" for name, rule in BLENDS.items()
)
LAWS: list[dict[str, Any]] = [
    {"temperature": 1.0},
    {"temperature": 0.0},
    {"temperature": 0.8, "top_k": 20},
    {"temperature": 1.1, "top_p": 0.8, "min_p": 0.01},
]
PROMPTS = ["My dear", "And it came to pass that the", "It is a truth universally", "He"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rig() -> AsyncIterator[Rig]:
    async with running(SPEC) as rig:
        yield rig


async def reply(
    rig: Rig, blend: str, seed: int = 1, *, max_tokens: int = 40, **fields: Any
) -> tuple[str, list[ReplyToken], Outcome]:
    law = {name: fields.pop(name) for name in LAWS[3] | LAWS[2] if name in fields}
    names = ("ignore_eos", "stop", "min_tokens")
    stopping = {name: fields.pop(name) for name in names if name in fields}
    request = GenerationRequest(
        blend,
        Prompt(text=fields.pop("prompt", PROMPTS[seed % 4])),
        Sampling(seed=seed, **law),
        Stopping(max_tokens=max_tokens, **stopping),
        **fields,
    )
    updates = [update async for update in rig.router.generate(request)]
    outcome = updates[-1].outcome
    assert outcome is not None
    text = "".join(update.text for update in updates)
    return text, [token for update in updates for token in update.tokens], outcome


async def both(rig: Rig, blend: str, **fields: Any) -> tuple[Outcome, Outcome]:
    """The outcomes without and with drafts, after all that a caller sees was compared."""
    plain = await reply(rig, blend, **fields)
    ahead = await reply(rig, f"{blend}-ahead", **fields)
    assert ahead[0] == plain[0]
    assert len(ahead[1]) == len(plain[1])
    for drafted, token in zip(ahead[1], plain[1], strict=True):
        assert (drafted.member, drafted.position) == (token.member, token.position)
        assert drafted.token.id == token.token.id
        assert drafted.token.bytes == token.token.bytes
        assert drafted.token.logprob == pytest.approx(token.token.logprob, abs=1e-4)
        assert [c.id for c in drafted.token.top] == [c.id for c in token.token.top]
        assert dict(drafted.shares) == pytest.approx(dict(token.shares), abs=1e-4)
        assert drafted.bound == pytest.approx(token.bound, abs=1e-4)
    left, right = ahead[2], plain[2]
    assert (left.finish_reason, left.stop_string) == (right.finish_reason, right.stop_string)
    assert (left.num_tokens, left.law) == (right.num_tokens, right.law)
    drawn = {usage.member: usage.drawn_tokens for usage in left.usage if usage.drawn_tokens}
    assert drawn == {u.member: u.drawn_tokens for u in right.usage if u.drawn_tokens}
    return right, left


@pytest.mark.parametrize("blend", BLENDS)
async def test_drafts_change_no_token(rig: Rig, blend: str) -> None:
    num_agreed = 0
    for seed, law in enumerate(LAWS):  # each with a prompt of its own
        _, ahead = await both(rig, blend, seed=seed, max_tokens=24, **law)
        (drafter,) = [usage for usage in ahead.usage if usage.member == "austen"]
        assert 0 <= drafter.accepted_tokens <= drafter.drafted_tokens
        num_agreed += drafter.accepted_tokens
    assert num_agreed > 0


@pytest.mark.parametrize("blend", ["two", "three", "mean", "contrast"])
async def test_what_else_a_request_asks_is_the_same(rig: Rig, blend: str) -> None:
    text, _, _ = await reply(rig, blend, 2, max_tokens=30, ignore_eos=True)
    stopping = {"stop": (text[20:23],), "ignore_eos": True}
    _, ahead = await both(rig, blend, seed=2, max_tokens=30, **stopping)
    assert ahead.finish_reason is FinishReason.STOP_STRING
    await both(rig, blend, seed=3, max_tokens=12, output=Output(num_top_candidates=3))
    await both(rig, blend, seed=4, max_tokens=16, min_tokens=6)
    wanted = OutputFormat("regex", "[a-z ,;.]{30}")
    _, ahead = await both(rig, blend, seed=5, max_tokens=60, format=wanted)
    assert ahead.finish_reason is FinishReason.END_OF_TURN


async def test_overrides_that_leave_nobody_to_draft_for_are_plain(rig: Rig) -> None:
    for overrides in (
        Overrides(member="austen"),
        Overrides(span="word"),
        Overrides(weights={"austen": 1.0}),
    ):
        _, ahead = await both(rig, "two", max_tokens=12, overrides=overrides)
        assert not any(usage.drafted_tokens for usage in ahead.usage)
    _, ahead = await both(rig, "two", max_tokens=24, overrides=Overrides(weights={"kjv": 1.0}))
    assert any(usage.drafted_tokens for usage in ahead.usage)  # who has no weight may draft


async def test_a_member_decides_a_draft_in_one_pass(rig: Rig) -> None:
    for blend in ("one", "mean"):
        _, _, outcome = await reply(rig, f"{blend}-ahead", 3, temperature=0.7, ignore_eos=True)
        drafter, decider = outcome.usage
        assert (drafter.member, decider.member) == ("austen", "kjv")
        # Every turn gives one token that is not drafted, and takes one pass.
        num_turns = outcome.num_tokens - drafter.accepted_tokens
        assert drafter.accepted_tokens > 0
        assert decider.seat.forward_passes == num_turns
    _, _, outcome = await reply(rig, "one-ahead", 3, temperature=0.7, ignore_eos=True)
    drafter, decider = outcome.usage
    num_fed = drafter.seat.processed_tokens + drafter.seat.cached_tokens
    num_read = drafter.seat.prompt_tokens + drafter.drafted_tokens
    # Its prompt and first news; then each drafted token once, and of a draft that stood the last.
    assert num_read <= num_fed <= num_read + drafter.seat.steps
    assert drafter.seat.forward_passes == 1 + drafter.drafted_tokens


async def test_who_speaks_in_turns_takes_fewer_passes_than_it_says_tokens(rig: Rig) -> None:
    _, tokens, outcome = await reply(rig, "two-ahead", 6, temperature=0.7, max_tokens=80)
    drafter, decider = outcome.usage
    said = [token.member for token in tokens]
    assert decider.seat.forward_passes < 0.8 * said.count("kjv")
    assert drafter.drafted_tokens > drafter.accepted_tokens > 0


async def test_a_reply_that_broke_off_goes_on_with_drafts_or_without(rig: Rig) -> None:
    for blend in ("two", "mean"):
        text, tokens, outcome = await reply(rig, blend, 7, max_tokens=24)
        received = tuple(
            ReceivedToken(t.member, t.token.id, t.token.bytes, t.weights) for t in tokens[:10]
        )
        resumption = Resumption(received, outcome.revision)
        head = b"".join(token.token.bytes for token in tokens[:10]).decode()
        for resumed in (blend, f"{blend}-ahead"):
            rest, _, _ = await reply(rig, resumed, 7, max_tokens=24, resumption=resumption)
            assert head + rest == text


@pytest.mark.parametrize(("blend", "lost"), [("two", "austen"), ("three", "kjv"), ("mean", "kjv")])
async def test_a_replica_lost_in_the_midst_of_a_draft_leaves_no_trace(
    blend: str, lost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its server stops while it is asked to draft, or to decide."""
    async with running(SPEC, num_replicas=2) as rig:
        plain = await reply(rig, blend, 8, max_tokens=24)
        ask, num_asked, has_stopped = Speculator._ask, 0, False

        async def ask_and_stop(
            self: Speculator, member: int, want: Draw | Rank, draft: Sequence[StepToken] = ()
        ) -> list[StepEvent]:
            nonlocal num_asked, has_stopped
            asking = asyncio.ensure_future(ask(self, member, want, draft))
            num_asked += list(rig.spec.blends[blend].members)[member] == lost
            if num_asked == 3 and not has_stopped:
                has_stopped = True
                await asyncio.sleep(0)
                await stop_one(rig, lost)
            return await asking

        monkeypatch.setattr(Speculator, "_ask", ask_and_stop)
        ahead = await reply(rig, f"{blend}-ahead", 8, max_tokens=24)
    assert ahead[0] == plain[0]
    assert [t.token.id for t in ahead[1]] == [t.token.id for t in plain[1]]
    assert {usage.member: usage.leases for usage in ahead[2].usage}[lost] == 2


async def stop_one(rig: Rig, name: str) -> None:
    """The member's replica that has a sequence closes its port, and no new lease reaches it."""
    server = next(server for server in rig.servers[name] if server.replica.num_sequences)
    rig.servers[name].remove(server)
    rig.members[name].servers.remove(server)
    await server.stop()
    server.replica.stop()


async def test_many_streams_that_measure_as_they_go_say_the_same() -> None:
    """As blend files have it by default: how far is decided from turn to turn, by the clock."""
    spec = SPEC.replace(", always: true", "")
    async with running(spec) as rig:
        for blend in ("two", "mean"):
            seeds = range(6)
            plain = await asyncio.gather(*(reply(rig, blend, seed) for seed in seeds))
            ahead = await asyncio.gather(*(reply(rig, f"{blend}-ahead", seed) for seed in seeds))
            assert [said[0] for said in ahead] == [said[0] for said in plain]
            drafters = [usage for said in ahead for usage in said[2].usage]
            assert any(usage.drafted_tokens for usage in drafters)  # it has tried


async def test_drafted_tokens_have_the_law_of_the_ensemble(rig: Rig) -> None:
    """Of the first two tokens, the second one drafted; against plain transformers, by chi-square.

    Seeds are fixed; over seeds, the true law would fail with probability 1e-6.
    """
    _, law = await asyncio.to_thread(law_of_two, 1.0, 1.0)  # the loop has pings to answer
    num, room = 400, asyncio.Semaphore(8)
    end = plain_model("austen")[2]
    weights = Overrides(weights={"austen": 0.35, "kjv": 0.65})

    async def one(seed: int) -> tuple[tuple[int, ...], int]:
        async with room:
            _, tokens, outcome = await reply(
                rig, "two-ahead", seed, prompt="My dear", max_tokens=7, overrides=weights
            )
        ids = tuple(token.token.id for token in tokens)
        num_drafted = sum(usage.drafted_tokens for usage in outcome.usage)
        return ids[:2] if len(ids) > 1 else (*ids, end), num_drafted

    found = await asyncio.gather(*(one(seed) for seed in range(num)))
    counts = Counter(drawn for drawn, _ in found)
    assert sum(num_drafted > 0 for _, num_drafted in found) > 0.6 * num
    assert all(law.get(drawn, 0) > 0 for drawn in counts), "drew what the law excludes"

    cells = [drawn for drawn, p in law.items() if p * num >= 5]
    observed = [float(counts[drawn]) for drawn in cells]
    wanted = [law[drawn] * num for drawn in cells]
    observed.append(num - sum(observed))
    wanted.append(num - sum(wanted))
    assert chisquare(observed, wanted).pvalue > 1e-6
