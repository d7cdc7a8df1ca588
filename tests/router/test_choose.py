"""`choose` over the whole path: all reply, the best reply is the answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cluster.blending.choosing import by_pairs, extracted
from cluster.errors import CuveeError, InvalidRequest, Unavailable, Unsupported
from cluster.members.base import Prompt
from cluster.models.resolve import resolve
from cluster.rankers.base import RankRequest
from cluster.router.answers import FinishReason, Outcome, Proposal, ProposalState, ReplyToken
from cluster.router.requests import GenerationRequest, Overrides, Sampling, ScoreRequest, Stopping
from tests.rankers.checkpoints import make_ranker
from tests.rig import Rig, running

pytestmark = pytest.mark.asyncio(loop_scope="module")

TINY = "dtype: float32, kv_memory: 32MiB"
SPEC = """
version: 1
members:
  austen: {{model: embedded:tiny-austen, {tiny}}}
  kjv: {{model: embedded:tiny-kjv, {tiny}}}
  bytes: {{model: embedded:tiny-bytes, {tiny}}}
rankers:
  judge: {{model: {folder}/reward, kind: reward, dtype: float32}}
  duel: {{model: {folder}/reward, kind: pairwise, template: "{{{{ first }}}}|{{{{ second }}}}"}}
  alike: {{model: {folder}/encoder, kind: embedding, dtype: float32}}
blends:
  likely: {{method: choose, rank: likelihood, replies: 2, members: {{austen: 0.7, kjv: 0.3}}}}
  mixed: {{method: choose, rank: likelihood, members: {{austen: 1, bytes: 1}}}}
  judged: {{method: choose, rank: judge, replies: 2, members: {{austen: 1, bytes: 1}}}}
  duelled: {{method: choose, rank: duel, members: {{austen: 1, kjv: 1, bytes: 1}}}}
  agreed: {{method: choose, rank: alike, replies: 2, members: {{austen: 1, kjv: 1}}}}
  voted: {{method: choose, rank: vote, extract: "(\\\\w+)\\\\W*$", replies: 3,
          members: {{austen: 2, kjv: 1}}}}
  silent: {{method: choose, rank: vote, extract: "#### (\\\\d+)", members: {{austen: 1, kjv: 1}}}}
  hasty: {{method: choose, rank: likelihood, time_limit_s: 0.01, quorum: 1, replies: 4,
          members: {{austen: 1, kjv: 1}}}}
  patient: {{method: choose, rank: likelihood, time_limit_s: 0.01, quorum: 8, replies: 4,
            members: {{austen: 1, kjv: 1}}}}
  tokens: {{method: mixture, members: {{austen: 0.5, kjv: 0.5}}}}
limits: {{max_new_tokens: 400, max_prompt_tokens: 300, lease_timeout_s: 2}}
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rig(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Rig]:
    folder = tmp_path_factory.mktemp("rankers")
    make_ranker(folder / "reward")
    make_ranker(folder / "encoder", num_labels=None)
    async with running(SPEC.format(folder=folder, tiny=TINY)) as rig:
        yield rig


async def generate(
    rig: Rig,
    blend: str,
    seed: int = 5,
    max_tokens: int = 12,
    *,
    ignore_eos: bool = False,
    **overrides: object,
) -> tuple[str, list[ReplyToken], Outcome]:
    request = GenerationRequest(
        blend=blend,
        prompt=Prompt(text="And it came to pass"),
        sampling=Sampling(seed=seed),
        stopping=Stopping(max_tokens=max_tokens, ignore_eos=ignore_eos),
        overrides=Overrides(**overrides),  # type: ignore[arg-type]
    )
    text, tokens = "", []
    async with aclosing(rig.router.generate(request)) as updates:
        async for update in updates:
            text += update.text
            tokens += update.tokens
            outcome = update.outcome
    assert outcome is not None
    return text, tokens, outcome


def ids(tokens: list[ReplyToken]) -> list[int]:
    return [token.token.id for token in tokens]


def chosen(outcome: Outcome) -> Proposal:
    (found,) = [p for p in outcome.proposals if p.is_chosen]
    return found


async def test_every_proposal_is_its_members_own_reply(rig: Rig) -> None:
    """Any of them can be had again, alone, with its member pinned and its seed."""
    text, tokens, outcome = await generate(rig, "likely")
    assert [p.member for p in outcome.proposals] == ["austen", "austen", "kjv", "kjv"]
    assert len({p.seed for p in outcome.proposals}) == 4
    for proposal in outcome.proposals:
        alone, alone_tokens, ended = await generate(
            rig, "tokens", seed=proposal.seed, member=proposal.member
        )
        assert proposal.state is ProposalState.COMPLETE
        assert proposal.text == alone
        assert proposal.outcome is not None
        assert proposal.outcome.finish_reason is ended.finish_reason is FinishReason.MAX_TOKENS
        if proposal.is_chosen:
            assert text == alone
            assert ids(tokens) == ids(alone_tokens)
    assert outcome.seed == 5
    again, _, repeated = await generate(rig, "likely")
    assert again == text
    assert [p.text for p in repeated.proposals] == [p.text for p in outcome.proposals]


async def test_likelihood_against_transformers(rig: Rig) -> None:
    _, _, outcome = await generate(rig, "likely")
    prompt, weights = "And it came to pass", {"austen": 0.7, "kjv": 0.3}
    for proposal in outcome.proposals:
        expected = 0.0
        for name, weight in weights.items():
            folder = resolve(f"embedded:tiny-{name}", download=False)
            tokenizer = AutoTokenizer.from_pretrained(folder)
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
            begin = tokenizer(prompt).input_ids
            ids = begin + tokenizer(proposal.text, add_special_tokens=False).input_ids
            with torch.inference_mode():
                laws = model(torch.tensor([ids])).logits[0].log_softmax(dim=-1)
            logprobs = [float(laws[i - 1, ids[i]]) for i in range(len(begin), len(ids))]
            expected += weight * sum(logprobs) / len(proposal.text.encode())
        assert proposal.score == pytest.approx(expected, abs=1e-5)
    best = max(p.score or 0.0 for p in outcome.proposals)
    assert chosen(outcome).score == best


async def test_who_cannot_hold_a_reply_does_not_judge(rig: Rig) -> None:
    """Four hundred tokens of one are more bytes than the other, of a token a byte, can read."""
    _, _, outcome = await generate(rig, "mixed", max_tokens=400, ignore_eos=True)
    assert max(len(p.text) for p in outcome.proposals) > 1024
    alone = await rig.router.score(
        ScoreRequest(
            "mixed",
            Prompt(text="And it came to pass"),
            chosen(outcome).text,
            overrides=Overrides(member="austen"),
        )
    )
    assert alone.logprob is not None
    expected = alone.logprob / len(chosen(outcome).text.encode())
    assert chosen(outcome).score == pytest.approx(expected, abs=1e-5)


async def test_rankers_decide(rig: Rig) -> None:
    for blend, name in (("judged", "judge"), ("duelled", "duel"), ("agreed", "alike")):
        text, _, outcome = await generate(rig, blend)
        replies = tuple(p.text for p in outcome.proposals)
        ranker = rig.rankers[name]
        found = await ranker.measure(RankRequest(Prompt(text="And it came to pass"), replies))
        if name == "duel":
            scores = by_pairs(found)
        elif name == "alike":
            alike = found.astype(np.float64) @ found.T
            scores = (alike.sum(axis=1) - np.diag(alike)) / (len(replies) - 1)
        else:
            scores = found
        given = [p.score for p in outcome.proposals]
        np.testing.assert_allclose(given, scores, atol=1e-4)
        assert text == replies[int(np.argmax(scores))] == chosen(outcome).text
        assert len(set(replies)) > 1, "there was something to choose"


async def test_votes_are_counted_over_members(rig: Rig) -> None:
    text, _, outcome = await generate(rig, "voted")
    votes: dict[str, float] = {}
    for proposal in outcome.proposals:
        answer = extracted(r"(\w+)\W*$", proposal.text)
        assert proposal.answer == answer
        assert answer is not None
        weight = {"austen": 2 / 9, "kjv": 1 / 9}[proposal.member]
        votes[answer] = votes.get(answer, 0.0) + weight
    for proposal in outcome.proposals:
        assert proposal.answer is not None
        assert proposal.score == pytest.approx(votes[proposal.answer])
    assert votes[chosen(outcome).answer or ""] == max(votes.values())
    assert text == chosen(outcome).text


async def test_usage_adds_up_over_all_replies(rig: Rig) -> None:
    _, _, outcome = await generate(rig, "judged")
    assert {u.member: (u.drawn_tokens, u.leases) for u in outcome.usage} == {
        "austen": (24, 2),
        "bytes": (24, 2),
    }
    assert all(usage.seat.forward_passes >= 24 for usage in outcome.usage)
    assert outcome.num_tokens == 12
    assert rig.num_held() == (0, 0)


async def test_a_quorum_is_enough_when_time_is_up(rig: Rig) -> None:
    text, _, outcome = await generate(rig, "hasty", max_tokens=300)
    states = [p.state for p in outcome.proposals]
    assert ProposalState.LATE in states
    assert ProposalState.COMPLETE in states
    assert chosen(outcome).text == text
    assert all(p.text == "" and p.score is None for p in outcome.proposals if p.outcome is None)
    _, _, outcome = await generate(rig, "patient", max_tokens=8)
    assert {p.state for p in outcome.proposals} == {ProposalState.COMPLETE}, "a quorum of all"
    while rig.num_held() != (0, 0):  # the late ones have given back what they held
        await asyncio.sleep(0.01)


async def test_what_is_lost_is_said(rig: Rig) -> None:
    """A member without replicas: the others' replies are enough, and the answer says so."""
    servers, rig.members["kjv"].servers = rig.members["kjv"].servers, []
    try:
        text, _, outcome = await generate(rig, "agreed")
        lost = [p for p in outcome.proposals if p.member == "kjv"]
        assert {p.state for p in lost} == {ProposalState.FAILED}
        assert all("no replica" in p.error for p in lost)
        assert chosen(outcome).member == "austen"
        assert text == chosen(outcome).text
        with pytest.raises(Unavailable, match="no replica"):
            await generate(rig, "agreed", parameters={"quorum": 3})
    finally:
        rig.members["kjv"].servers = servers


async def test_leaving_early_stops_all(rig: Rig) -> None:
    task = asyncio.create_task(generate(rig, "likely", max_tokens=400))
    while rig.num_held()[1] < 4:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    while rig.num_held() != (0, 0):
        await asyncio.sleep(0.01)


async def test_overrides(rig: Rig) -> None:
    _, _, outcome = await generate(rig, "likely", weights={"kjv": 1}, parameters={"replies": 3})
    assert [p.member for p in outcome.proposals] == ["kjv"] * 3
    text, _, outcome = await generate(rig, "likely", member="austen")
    assert outcome.proposals == ()
    assert text == (await generate(rig, "tokens", member="austen"))[0]


@pytest.mark.parametrize(
    ("blend", "overrides", "error", "field"),
    [
        ("silent", {}, Unsupported, "blend"),
        (
            "likely",
            {"parameters": {"replies": 17}},
            InvalidRequest,
            "overrides.parameters[replies]",
        ),
        ("likely", {"parameters": {"quorum": 5}}, InvalidRequest, "overrides.parameters[quorum]"),
        ("patient", {"weights": {"kjv": 1}}, InvalidRequest, "overrides.weights"),
        ("likely", {"span": "word"}, InvalidRequest, "overrides.span"),
        ("likely", {"weights": {"bytes": 1}}, InvalidRequest, "overrides.weights[bytes]"),
    ],
)
async def test_bad_input(
    rig: Rig, blend: str, overrides: dict[str, object], error: type[CuveeError], field: str
) -> None:
    with pytest.raises(error) as caught:
        await generate(rig, blend, **overrides)
    assert caught.value.field == field
    assert rig.num_held() == (0, 0)


async def test_a_score_under_replies_is_the_members_alone(rig: Rig) -> None:
    score = await rig.router.score(
        ScoreRequest("mixed", Prompt(text="And it came"), continuation=" to pass")
    )
    assert [m.member for m in score.members] == ["austen", "bytes"]
    assert score.logprob is None
    assert score.mixture == ()


async def test_a_ranker_that_does_not_load_is_named(tmp_path: Path) -> None:
    make_ranker(tmp_path / "reward", num_labels=3)
    make_ranker(tmp_path / "encoder", num_labels=None)
    with pytest.raises(Unsupported, match="3 labels"):
        async with running(SPEC.format(folder=tmp_path, tiny=TINY)):
            pass
