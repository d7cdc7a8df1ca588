"""`fuse` over the whole path: members propose, a fuser writes the answer from what they propose."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest
import pytest_asyncio

from cluster.errors import CuveeError, InvalidRequest
from cluster.members.base import Prompt
from cluster.router.answers import Outcome, Proposal, ProposalState
from cluster.router.requests import GenerationRequest, Overrides, Sampling, Stopping
from cluster.spec.replies import FUSE_TEMPLATE
from cluster.spec.templates import render
from cluster.text.chat import Message
from tests.rig import Rig, running

pytestmark = pytest.mark.asyncio(loop_scope="module")

TINY = "dtype: float32, kv_memory: 32MiB"
SPEC = f"""
version: 1
members:
  austen: {{model: embedded:tiny-austen, {TINY}}}
  kjv: {{model: embedded:tiny-kjv, {TINY}}}
  bytes: {{model: embedded:tiny-bytes, {TINY}}}
blends:
  team:
    method: fuse
    members: {{austen: proposer, bytes: proposer, kjv: fuser}}
    template: "{{% for reply in replies %}}{{{{ reply }}}}|{{% endfor %}}{{{{ prompt }}}}"
  deep:
    {{method: fuse, layers: 2, replies: 2, members: {{austen: proposer, kjv: both}}}}
  best:
    method: fuse
    replies: 3
    rank: likelihood
    top: 2
    members: {{austen: proposer, kjv: both}}
  alone: {{method: mixture, span: response, members: {{austen: 1, kjv: 1, bytes: 1}}}}
limits: {{max_new_tokens: 400, max_prompt_tokens: 300, lease_timeout_s: 2}}
"""
TEXT = Prompt(text="And it came to pass")
CHAT = Prompt(messages=(Message("system", "Be brief."), Message("user", "Who are you?")))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rig() -> AsyncIterator[Rig]:
    async with running(SPEC) as rig:
        yield rig


async def generate(
    rig: Rig, blend: str, prompt: Prompt, seed: int = 5, max_tokens: int = 10, **overrides: object
) -> tuple[list[str], Outcome]:
    """The pieces of text as they came, and how it ended."""
    request = GenerationRequest(
        blend=blend,
        prompt=prompt,
        sampling=Sampling(seed=seed),
        stopping=Stopping(max_tokens=max_tokens),
        overrides=Overrides(**overrides),  # type: ignore[arg-type]
    )
    pieces = []
    async with aclosing(rig.router.generate(request)) as updates:
        async for update in updates:
            pieces.append(update.text)
            outcome = update.outcome
    assert outcome is not None
    return [piece for piece in pieces if piece], outcome


async def by_one(rig: Rig, member: str, prompt: Prompt, seed: int, max_tokens: int = 10) -> str:
    pieces, _ = await generate(rig, "alone", prompt, seed, max_tokens, member=member)
    return "".join(pieces)


async def check_proposals(rig: Rig, proposals: list[Proposal], prompt: Prompt) -> None:
    """Each is what its member alone says to that prompt."""
    for proposal in proposals:
        assert proposal.state is ProposalState.COMPLETE
        assert proposal.text == await by_one(rig, proposal.member, prompt, proposal.seed)


async def test_the_fuser_answers_from_what_was_proposed(rig: Rig) -> None:
    pieces, outcome = await generate(rig, "team", TEXT)
    assert [p.member for p in outcome.proposals] == ["austen", "bytes"]
    await check_proposals(rig, list(outcome.proposals), TEXT)
    asked = "".join(f"{p.text}|" for p in outcome.proposals) + "And it came to pass"
    assert "".join(pieces) == await by_one(rig, "kjv", Prompt(text=asked), 5)
    assert len(pieces) > 3, "the answer is streamed"
    assert all(p.is_chosen for p in outcome.proposals)
    assert {u.member: u.drawn_tokens for u in outcome.usage} == dict.fromkeys(
        ("austen", "bytes", "kjv"), 10
    )
    assert rig.num_held() == (0, 0)


async def test_layers_answer_the_layer_before(rig: Rig) -> None:
    """In a conversation the drafts are part of its last message."""
    pieces, outcome = await generate(rig, "deep", CHAT)
    first = [p for p in outcome.proposals if p.layer == 1]
    second = [p for p in outcome.proposals if p.layer == 2]
    assert [p.member for p in first] == [p.member for p in second] == ["austen"] * 2 + ["kjv"] * 2
    assert len({p.seed for p in outcome.proposals}) == 8
    await check_proposals(rig, first, CHAT)

    def fused(proposals: list[Proposal]) -> Prompt:
        replies = [p.text for p in proposals]
        words = render(FUSE_TEMPLATE, prompt="Who are you?", replies=replies)
        assert words.endswith("\n\nWho are you?")
        return Prompt(messages=(Message("system", "Be brief."), Message("user", words)))

    await check_proposals(rig, second, fused(first))
    assert "".join(pieces) == await by_one(rig, "kjv", fused(second), 5)


async def test_only_the_best_are_fused(rig: Rig) -> None:
    pieces, outcome = await generate(rig, "best", TEXT)
    ranked = sorted(outcome.proposals, key=lambda p: -(p.score or 0.0))
    assert [p.is_chosen for p in ranked] == [True, True, False, False, False, False]
    words = render(FUSE_TEMPLATE, prompt=TEXT.text, replies=[p.text for p in ranked[:2]])
    assert "".join(pieces) == await by_one(rig, "kjv", Prompt(text=words), 5)


async def test_a_lost_proposer_is_done_without(rig: Rig) -> None:
    servers, rig.members["bytes"].servers = rig.members["bytes"].servers, []
    try:
        pieces, outcome = await generate(rig, "team", TEXT)
        states = {p.member: p.state for p in outcome.proposals}
        assert states == {"austen": ProposalState.COMPLETE, "bytes": ProposalState.FAILED}
        asked = f"{outcome.proposals[0].text}|And it came to pass"
        assert "".join(pieces) == await by_one(rig, "kjv", Prompt(text=asked), 5)
    finally:
        rig.members["bytes"].servers = servers


@pytest.mark.parametrize(
    ("blend", "max_tokens", "overrides", "field", "words"),
    [
        ("best", 10, {"parameters": {"top": 7.0}}, "overrides.parameters[top]", "got 7"),
        ("team", 10, {"parameters": {"top": 1.0}}, "overrides.parameters[top]", "got 1"),
        ("team", 10, {"parameters": {"layers": 9.0}}, "overrides.parameters[layers]", "got 9"),
        ("team", 10, {"weights": {"kjv": 1.0}}, "overrides.weights", "has no weights"),
        ("deep", 150, {}, "prompt", "with the other replies in it"),
    ],
)
async def test_bad_input(
    rig: Rig, blend: str, max_tokens: int, overrides: dict[str, object], field: str, words: str
) -> None:
    with pytest.raises(CuveeError, match=words) as caught:
        await generate(rig, blend, TEXT, max_tokens=max_tokens, **overrides)
    assert isinstance(caught.value, InvalidRequest)
    assert caught.value.field == field
    assert rig.num_held() == (0, 0)
