"""Drafts over the whole path: the same text as without, in fewer passes of those who decide."""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import product
from typing import Any

import pytest
import pytest_asyncio

from cluster.members.base import Prompt
from cluster.router.answers import Outcome, ReplyToken
from cluster.router.requests import (
    GenerationRequest,
    Sampling,
    Stopping,
)
from tests.rig import Rig, running

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
    async with running(SPEC, num_replicas=2) as rig:
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
    for seed, law in product(range(3), LAWS):
        _, ahead = await both(rig, blend, seed=seed, **law)
        (drafter,) = [usage for usage in ahead.usage if usage.member == "austen"]
        assert 0 <= drafter.accepted_tokens <= drafter.drafted_tokens
        num_agreed += drafter.accepted_tokens
    assert num_agreed > 0
