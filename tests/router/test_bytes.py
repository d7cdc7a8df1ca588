"""Blends by bytes over the whole path: members of unlike tokenizers draw every byte together."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from copy import copy
from functools import cache
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import torch
from scipy.stats import chi2_contingency, chisquare
from transformers import AutoModelForCausalLM

from cluster.blending.warping import Warp, warped
from cluster.errors import InvalidRequest, Unsupported
from cluster.members.base import Prompt
from cluster.models.resolve import resolve
from cluster.router.answers import FinishReason, Law, Outcome, ReplyToken
from cluster.router.requests import (
    GenerationRequest,
    Output,
    Overrides,
    Sampling,
    ScoreRequest,
    Stopping,
)
from cluster.spec.combined import DEFAULT_MIN_SHARE
from cluster.text.bytewise import END, ByteWalk
from cluster.text.grammar import OutputFormat
from cluster.text.member import MemberText
from tests.rig import Rig, running
from tests.text.byte_law import byte_law, followed

pytestmark = pytest.mark.asyncio(loop_scope="module")

FALSE_ALARM_RATE = 1e-6
TINY = "dtype: float32, kv_memory: 32MiB"
HALF = "unit: byte, members: {austen: 0.5, bytes: 0.5}"
SPEC = f"""
version: 1
members:
  austen: {{model: embedded:tiny-austen, {TINY}}}
  base: {{model: embedded:tiny-base, {TINY}}}
  bytes: {{model: embedded:tiny-bytes, {TINY}}}
  short: {{model: embedded:tiny-austen, max_context: 32, {TINY}}}
blends:
  mean: {{method: ensemble, {HALF}}}
  exact: {{method: ensemble, min_share: 0, {HALF}}}
  product: {{method: ensemble, rule: product, {HALF}}}
  adaptive: {{method: ensemble, adapt: {{floor: 0.02}}, {HALF}}}
  proxy: {{method: proxy, unit: byte, members: {{base: base, bytes: expert, austen: anti}}}}
  contrast:
    {{method: contrast, beta: 0.5, unit: byte, members: {{austen: expert, bytes: amateur}}}}
  solo: {{method: ensemble, unit: byte, min_share: 0, members: {{austen: 1}}}}
  letters: {{method: ensemble, unit: byte, members: {{bytes: 1}}}}
  tokens: {{method: mixture, members: {{austen: 1}}}}
  few: {{method: ensemble, candidates: 8, members: {{austen: 0.5, base: 0.5}}}}
  all: {{method: ensemble, exact: true, members: {{austen: 0.5, base: 0.5}}}}
  full: {{method: ensemble, unit: byte, members: {{short: 0.5, bytes: 0.5}}}}
limits: {{max_new_tokens: 400}}
"""
RULES = ("mean", "product", "adaptive", "proxy", "contrast")
PROMPT = "It is a truth"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rig() -> AsyncIterator[Rig]:
    async with running(SPEC) as rig:
        yield rig


def request(blend: str, max_bytes: int = 60, **fields: Any) -> GenerationRequest:
    sampling = Sampling(seed=fields.pop("seed", 1), **fields.pop("sampling", {}))
    stopping = Stopping(max_bytes, **fields.pop("stopping", {"ignore_eos": True}))
    prompt = Prompt(text=fields.pop("prompt", PROMPT))
    return GenerationRequest(blend, prompt, sampling, stopping, **fields)


async def reply(rig: Rig, asked: GenerationRequest) -> tuple[str, list[ReplyToken], Outcome]:
    updates = [update async for update in rig.router.generate(asked)]
    outcome = updates[-1].outcome
    assert outcome is not None
    text = "".join(update.text for update in updates)
    return text, [token for update in updates for token in update.tokens], outcome


@cache
def plain(name: str) -> tuple[MemberText, Any]:
    folder = resolve(f"embedded:tiny-{name}", download=False)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return MemberText.load(folder), model


@cache
def row(name: str, ids: tuple[int, ...]) -> np.ndarray:
    """What follows these ids of a reply, by transformers alone."""
    text, model = plain(name)
    with torch.inference_mode():
        logits = model(torch.tensor([text.render(PROMPT, None) + list(ids)])).logits[0, -1]
    found: np.ndarray = torch.log_softmax(logits.double(), -1).numpy()
    return found


@cache
def exact_law(name: str, said: bytes) -> np.ndarray:
    """By symbol: the member's probability, every split counted."""
    text, _ = plain(name)
    return byte_law(text.token_bytes, text.end_ids, lambda ids: row(name, ids), said)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 0.9)])
async def test_every_byte_of_a_mean_has_the_law_of_plain_transformers(
    rig: Rig, temperature: float, top_p: float
) -> None:
    asked = request(
        "exact",
        9,
        sampling={"temperature": temperature, "top_p": top_p},
        output=Output(num_top_candidates=20),
        stopping={"min_tokens": 4},
    )
    _, tokens, outcome = await reply(rig, asked)
    assert (outcome.law, outcome.dropped_share) == (Law.EXACT, 0)
    said = b""
    for token in tokens:
        parts = []
        for name in ("austen", "bytes"):
            law = exact_law(name, said)
            law = np.where((np.arange(END + 1) == END) & (len(said) < 4), 0, law)
            with np.errstate(divide="ignore"):
                parts.append(np.exp(warped(np.log(law / law.sum()), Warp(temperature, 0, top_p))))
        wanted = 0.5 * parts[0] + 0.5 * parts[1]
        assert np.exp(token.token.logprob) == pytest.approx(wanted[token.token.id], abs=1e-5)
        for candidate in token.token.top:
            assert np.exp(candidate.logprob) == pytest.approx(wanted[candidate.id], abs=1e-5)
        assert token.token.bytes == bytes([token.token.id])
        shares = [part[token.token.id] for part in parts]
        assert dict(token.shares) == pytest.approx(
            {"austen": shares[0] / sum(shares), "bytes": shares[1] / sum(shares)}, abs=1e-3
        )
        said += token.token.bytes


async def test_a_member_alone_says_by_bytes_what_it_says_by_tokens(rig: Rig) -> None:
    """Both against each other and against the exact law of the first three bytes; over seeds, one
    of the two true comparisons would fail with probability 2e-6."""
    num, length = 1000, 3
    room = asyncio.Semaphore(32)

    async def beginning(blend: str, seed: int) -> str:
        async with room:
            asked = request(blend, length, seed=seed, prompt=PROMPT, stopping={})
            _, tokens, outcome = await reply(rig, asked)
        said = b"".join(token.token.bytes for token in tokens)[:length]
        is_over = len(said) < length and outcome.finish_reason is FinishReason.END_OF_TURN
        return said.decode("latin-1") + ("$" if is_over else "")

    drawn = {
        blend: Counter(await asyncio.gather(*(beginning(blend, seed) for seed in range(num))))
        for blend in ("solo", "tokens")
    }
    outcomes = [text for text, n in (drawn["solo"] + drawn["tokens"]).items() if n >= 10]
    assert len(outcomes) > 20
    table = np.array([[drawn[blend][text] for text in outcomes] for blend in drawn])
    table = np.column_stack([table, num - table.sum(axis=1)])
    assert chi2_contingency(table).pvalue > FALSE_ALARM_RATE

    law = []
    for text in outcomes:
        said, p = text.removesuffix("$").encode("latin-1"), 1.0
        for at, byte in enumerate(said):
            p *= exact_law("austen", said[:at])[byte]
        law.append(p * exact_law("austen", said)[END] if text.endswith("$") else p)
    wanted = np.array([*law, 1 - sum(law)]) * num
    assert chisquare(table[0], wanted).pvalue > FALSE_ALARM_RATE
    shifted = np.roll(wanted[:-1], 1)
    assert chisquare(table[0], [*shifted, wanted[-1]]).pvalue < FALSE_ALARM_RATE


async def test_what_is_left_out_by_default_is_hardly_seen() -> None:
    """Total variation at each byte of given texts, against all of their splits."""
    text, _ = plain("austen")
    found = []
    for said in (b" univers", b". She ha"):
        walks = [
            ByteWalk(text.byte_vocabulary, text.canonical.encode, min_share)
            for min_share in (DEFAULT_MIN_SHARE, 0.0)
        ]
        for length in range(len(said) + 1):
            cut, exact = (
                np.exp(followed(walk, said[:length], lambda ids: row("austen", ids)).logprobs)
                for walk in walks
            )
            found.append(np.abs(cut - exact).sum() / 2)
    assert max(found) < 5e-3
    assert np.mean(found) < 1e-3


@pytest.mark.parametrize("blend", RULES)
async def test_a_text_scores_under_every_rule_as_its_bytes_do(rig: Rig, blend: str) -> None:
    text, tokens, outcome = await reply(rig, request(blend, 30, stopping={}))
    score = await rig.router.score(ScoreRequest(blend, Prompt(text=PROMPT), text))
    assert b"".join(token.bytes for token in score.mixture) == text.encode()
    wanted = [token.token.logprob for token in tokens]
    assert [token.logprob for token in score.mixture] == pytest.approx(wanted, abs=1e-4)
    assert score.logprob == pytest.approx(sum(wanted), abs=1e-3)
    assert {member.member for member in score.members} == set(rig.spec.blends[blend].members)
    assert outcome.law is Law.APPROXIMATE
    assert 0 < outcome.dropped_share < 0.01 * len(tokens)


async def test_by_bytes_a_member_finds_a_text_at_least_as_likely_as_in_canonical_tokens(
    rig: Rig,
) -> None:
    said = " universally"
    score = await rig.router.score(ScoreRequest("solo", Prompt(text=PROMPT), said))
    assert score.logprob is not None
    assert score.logprob > score.members[0].logprob
    letters = await rig.router.score(ScoreRequest("letters", Prompt(text=PROMPT), said))
    assert letters.logprob == pytest.approx(letters.members[0].logprob, abs=1e-4)


async def test_replies_say_how_their_law_relates_to_the_rules(rig: Rig) -> None:
    laws = {
        blend: (await reply(rig, request(blend, 12)))[2].law
        for blend in ("mean", "letters", "tokens", "few", "all")
    }
    assert laws == {
        "mean": Law.APPROXIMATE,
        "letters": Law.EXACT,  # one token a byte: there is one split
        "tokens": Law.EXACT,
        "few": Law.BOUNDED,
        "all": Law.EXACT,
    }
    sharp = request("few", 12, sampling={"top_k": 2, "temperature": 0.5})
    _, tokens, outcome = await reply(rig, sharp)
    assert not any(token.bound for token in tokens)
    assert outcome.law is Law.EXACT


async def test_a_byte_costs_one_message_each_way_and_about_one_pass_per_member(rig: Rig) -> None:
    await reply(rig, request("mean"))  # opens the exchanges
    before = copy(rig.exchanges.counts)
    asked = request("mean", 200, prompt="A prompt of its own", seed=5)
    _, tokens, outcome = await reply(rig, asked)
    after = rig.exchanges.counts
    usage = {u.member: u.seat for u in outcome.usage}
    assert after.steps_sent - before.steps_sent == 2 * len(tokens)
    assert after.messages_sent - before.messages_sent <= 2 * len(tokens) + 4
    assert after.messages_received - before.messages_received <= 2 * len(tokens) + 4
    assert after.bytes_received - before.bytes_received < 2 * len(tokens) * (257 * 4 + 60)
    assert usage["bytes"].forward_passes == len(tokens) == 200
    assert usage["bytes"].processed_tokens == usage["bytes"].prompt_tokens + 199
    # By tokens this member takes 0.4 passes a byte: the other splits are what bytes cost.
    assert usage["austen"].forward_passes < 1.2 * len(tokens)
    assert usage["austen"].processed_tokens < 2 * len(tokens)


@pytest.mark.parametrize("lost_member", ["austen", "bytes"])
async def test_a_lost_replica_leaves_no_trace(lost_member: str) -> None:
    async with running(SPEC, num_replicas=2) as rig:
        undisturbed, _, whole = await reply(rig, request("mean", 80))
        text, lost = "", None
        async for update in rig.router.generate(request("mean", 80)):
            text += update.text
            if lost is None and len(text) > 40:
                lost = next(s for s in rig.servers[lost_member] if s.replica.num_sequences)
                rig.members[lost_member].servers.remove(lost)
                await lost.stop()
            outcome = update.outcome
    assert text == undisturbed
    assert outcome is not None
    assert sum(usage.leases for usage in outcome.usage) == 3
    assert outcome.dropped_share == pytest.approx(whole.dropped_share, rel=1e-3)


async def test_a_reply_is_the_same_alone_and_among_others(rig: Rig) -> None:
    alone = [(await reply(rig, request("mean", seed=seed)))[0] for seed in range(3)]
    others = [reply(rig, request(other, seed=9)) for other in ("product", "tokens", "proxy")]
    together = await asyncio.gather(
        *(reply(rig, request("mean", seed=s)) for s in range(3)), *others
    )
    assert [text for text, _, _ in together[:3]] == alone
    assert rig.num_held() == (0, 0)


async def test_a_turn_ends_by_bytes_and_not_before_the_least_number(rig: Rig) -> None:
    async def outcome_of(seed: int, **stopping: Any) -> tuple[int, Outcome]:
        asked = request("mean", 130, prompt="And", seed=seed, stopping=stopping)
        _, tokens, outcome = await reply(rig, asked)
        return len(tokens), outcome

    ended = await asyncio.gather(*(outcome_of(seed) for seed in range(7)))
    over = [(n, s) for s, (n, o) in enumerate(ended) if o.finish_reason is FinishReason.END_OF_TURN]
    assert over
    num_bytes, seed = min(over)
    longer, _ = await outcome_of(seed, min_tokens=num_bytes + 5)
    assert longer >= num_bytes + 5


async def test_a_full_context_ends_the_reply(rig: Rig) -> None:
    _, tokens, outcome = await reply(rig, request("full", 300))
    assert outcome.finish_reason is FinishReason.CONTEXT_FULL
    assert 32 < len(tokens) < 200
    text, _ = plain("austen")
    room = 32 - len(text.render(PROMPT, None))
    ids = text.canonical.encode(" And when he had said these words, he went to the house" * 3)
    filling = b"".join(text.token_bytes[i] for i in ids[:room]).decode()
    rare = Overrides(parameters={"min_share": 1e-5})  # splits into more tokens than the canonical
    for said, words in ((filling * 2, "fit after the prompt"), (filling, "byte by byte")):
        with pytest.raises(InvalidRequest, match=words) as caught:
            await rig.router.score(ScoreRequest("full", Prompt(text=PROMPT), said, overrides=rare))
        assert (caught.value.reason, caught.value.field) == (
            "CONTINUATION_TOO_LONG",
            "continuation",
        )


async def test_a_pinned_member_speaks_by_its_tokens(rig: Rig) -> None:
    text, tokens, _ = await reply(rig, request("mean", 20, overrides=Overrides(member="austen")))
    assert (await reply(rig, request("tokens", 20)))[0] == text
    assert any(len(token.token.bytes) > 1 for token in tokens)


async def test_greedy_takes_the_best_byte(rig: Rig) -> None:
    _, tokens, _ = await reply(rig, request("exact", 6, sampling={"temperature": 0.0}))
    said = b""
    for token in tokens:
        law = 0.5 * exact_law("austen", said) + 0.5 * exact_law("bytes", said)
        assert token.token.id == int(law[:END].argmax())
        said += token.token.bytes


@pytest.mark.parametrize(
    ("blend", "name", "value", "reason"),
    [
        ("mean", "min_share", 1.0, "INVALID_VALUE"),
        ("mean", "min_share", -0.1, "INVALID_VALUE"),
        ("mean", "candidates", 16, "UNKNOWN_PARAMETER"),
        ("few", "min_share", 0.1, "UNKNOWN_PARAMETER"),
    ],
)
async def test_parameters_that_cannot_hold_are_refused(
    rig: Rig, blend: str, name: str, value: float, reason: str
) -> None:
    asked = request(blend, overrides=Overrides(parameters={name: value}))
    with pytest.raises(InvalidRequest) as caught:
        await reply(rig, asked)
    assert (caught.value.reason, caught.value.field) == (reason, f"overrides.parameters[{name}]")


async def test_a_format_is_refused(rig: Rig) -> None:
    with pytest.raises(Unsupported) as caught:
        await reply(rig, request("mean", stopping={}, format=OutputFormat("regex", "[a-z]+")))
    assert (caught.value.reason, caught.value.field) == ("FORMAT_NEEDS_TOKENS", "format")


async def test_the_least_share_can_be_overridden(rig: Rig) -> None:
    passes = {}
    for min_share in (1e-4, 0.3):
        asked = request("mean", overrides=Overrides(parameters={"min_share": min_share}))
        _, _, outcome = await reply(rig, asked)
        passes[min_share] = outcome.usage[0].seat.forward_passes
    assert passes[0.3] < passes[1e-4]


async def test_unlike_vocabularies_are_pointed_to_bytes() -> None:
    unlike = SPEC[: SPEC.index("blends:")] + (
        "blends:\n  unlike: {method: ensemble, members: {austen: 1, bytes: 1}}\n"
    )
    async with running(unlike) as rig:
        with pytest.raises(Unsupported, match="unit: byte"):
            await reply(rig, request("unlike"))
