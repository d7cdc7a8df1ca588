"""Weights by the prompt: Bayes' rule on its likelihoods, at no pass more than fixed ones take."""

from __future__ import annotations

import asyncio
import math
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
import torch
from scipy.stats import binomtest
from transformers import AutoModelForCausalLM, AutoTokenizer

import cluster.models
from cluster.blending.adaptive import Adaptation, Evidence
from cluster.errors import Unsupported
from cluster.members.base import Prompt
from cluster.models.resolve import resolve
from cluster.router.answers import Outcome, ReplyToken
from cluster.router.requests import GenerationRequest, Overrides, Sampling, ScoreRequest, Stopping
from cluster.text.chat import Message
from tests.rig import Rig, running

pytestmark = pytest.mark.asyncio(loop_scope="module")

FALSE_ALARM_RATE = 1e-6
NUM_TOKENS = 40
NO_OVERRIDES = Overrides()
MEMBERS = ("austen", "kjv")
PRIOR = (0.4, 0.6)
TINY = "dtype: float32, kv_memory: 32MiB"
BLEND = "members: {austen: 0.4, kjv: 0.6}"
GENTLE = "strength: 0.05, floor: 0.02"  # so that no prompt decides it all
SPEC = f"""
version: 1
members:
  austen: {{model: embedded:tiny-austen, {TINY}}}
  kjv: {{model: embedded:tiny-kjv, {TINY}}}
  bierce: {{model: embedded:tiny-bierce, {TINY}}}
blends:
  fixed: {{method: mixture, {BLEND}}}
  tokens: {{method: mixture, {BLEND}, adapt: {{evidence: prompt, {GENTLE}}}}}
  window: {{method: mixture, {BLEND}, adapt: {{evidence: prompt, window: 4, {GENTLE}}}}}
  replies: {{method: mixture, span: response, {BLEND}, adapt: {{evidence: prompt, {GENTLE}}}}}
  mean: {{method: ensemble, exact: true, {BLEND}, adapt: {{evidence: prompt, {GENTLE}}}}}
  fixed-mean: {{method: ensemble, exact: true, {BLEND}}}
  both: {{method: mixture, {BLEND}, adapt: {{evidence: both, window: 30, {GENTLE}}}}}
  both-mean: {{method: ensemble, exact: true, {BLEND}, adapt: {{evidence: both, {GENTLE}}}}}
  three:
    method: mixture
    span: response
    members: {{austen: 1, kjv: 1, bierce: 1}}
    adapt: {{evidence: prompt}}
"""
PROMPTS = (
    "And it came to pass, that the king said unto the people,",
    "It is a truth universally acknowledged, that a single man",
    "A",
    "x = 3; print(x)",
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rig() -> AsyncIterator[Rig]:
    async with running(SPEC) as rig:
        yield rig


async def reply(
    rig: Rig,
    blend: str,
    prompt: str | Prompt = PROMPTS[0],
    seed: int = 1,
    *,
    overrides: Overrides = NO_OVERRIDES,
    ignore_eos: bool = True,
) -> tuple[list[ReplyToken], Outcome]:
    request = GenerationRequest(
        blend,
        Prompt(text=prompt) if isinstance(prompt, str) else prompt,
        Sampling(seed=seed),
        Stopping(max_tokens=NUM_TOKENS, ignore_eos=ignore_eos),
        overrides=overrides,
    )
    updates = [update async for update in rig.router.generate(request)]
    outcome = updates[-1].outcome
    assert outcome is not None
    return [token for update in updates for token in update.tokens], outcome


@cache
def loaded(name: str) -> tuple[AutoTokenizer, AutoModelForCausalLM]:
    folder = resolve(f"embedded:tiny-{name}", download=False)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return AutoTokenizer.from_pretrained(folder), model


def likelihoods(name: str, prompt: str, reply: Sequence[int] = ()) -> tuple[list[float], int]:
    """By transformers: of all tokens but the first, and how many of them are the prompt's."""
    tokenizer, model = loaded(name)
    ids = [*tokenizer(prompt).input_ids, *reply]  # type: ignore[operator]
    with torch.inference_mode():
        rows = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1)  # type: ignore[operator]
    found = [float(rows[i, token]) for i, token in enumerate(ids[1:])]
    return found, len(found) - len(reply)


def posterior(logprobs: Sequence[Sequence[float]], window: int = 0) -> dict[str, float]:
    """Bayes' rule written out, tempered and floored as in the spec."""
    strength, floor = 0.05, 0.02
    sums = [math.fsum(known[-window:]) for known in logprobs]
    odds = [p * math.exp(strength * (s - max(sums))) for p, s in zip(PRIOR, sums, strict=True)]
    shares = [odd / sum(odds) for odd in odds]
    return {n: floor + (1 - 2 * floor) * s for n, s in zip(MEMBERS, shares, strict=True)}


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("blend", ["tokens", "window", "replies", "mean"])
async def test_weights_are_the_posterior_of_the_prompt_under_plain_transformers(
    rig: Rig, blend: str, prompt: str
) -> None:
    _, outcome = await reply(rig, blend, prompt)
    known = [likelihoods(name, prompt)[0] for name in MEMBERS]
    assert outcome.weights == pytest.approx(
        posterior(known, 4 if blend == "window" else 0), abs=1e-5
    )


@pytest.mark.parametrize(("blend", "fixed"), [("tokens", "fixed"), ("mean", "fixed-mean")])
async def test_the_reply_is_that_of_a_blend_with_these_weights(
    rig: Rig, blend: str, fixed: str
) -> None:
    for seed in range(4):
        tokens, outcome = await reply(rig, blend, seed=seed)
        same, _ = await reply(rig, fixed, seed=seed, overrides=Overrides(outcome.weights))
        assert [t.token.id for t in tokens] == [t.token.id for t in same]
        assert [t.member for t in tokens] == [t.member for t in same]


async def test_whole_replies_are_drawn_by_these_weights(rig: Rig) -> None:
    num, room = 400, asyncio.Semaphore(16)

    async def drawn_by(seed: int) -> tuple[str, Outcome]:
        stopping = Stopping(max_tokens=1, ignore_eos=True)
        request = GenerationRequest(
            "replies", Prompt(text=PROMPTS[0]), Sampling(seed=seed), stopping
        )
        async with room:
            updates = [update async for update in rig.router.generate(request)]
        (token,) = [token for update in updates for token in update.tokens]
        outcome = updates[-1].outcome
        assert outcome is not None
        return token.member, outcome

    replies = await asyncio.gather(*(drawn_by(seed) for seed in range(num)))
    drawn, outcome = Counter(member for member, _ in replies), replies[-1][1]
    assert binomtest(drawn["kjv"], num, outcome.weights["kjv"]).pvalue > FALSE_ALARM_RATE
    assert outcome.weights["kjv"] > 0.7
    assert binomtest(drawn["kjv"], num, 0.6).pvalue < FALSE_ALARM_RATE


async def test_both_begin_with_the_prompt_and_go_on_with_the_reply(rig: Rig) -> None:
    tokens, outcome = await reply(rig, "both")
    ids = [token.token.id for token in tokens]
    evidence = Evidence(PRIOR, Adaptation(0.05, 30, 0.02))
    for member, name in enumerate(MEMBERS):
        known, num_prompt = likelihoods(name, PROMPTS[0], ids)
        read = 1 + max(token.position for token in tokens if token.member == name)
        evidence.note(member, 0, known[: num_prompt + read])
    expected = dict(zip(MEMBERS, evidence.weights(), strict=True))
    assert outcome.weights == pytest.approx(expected, abs=1e-5)
    # What members of a mean tell leaves out ids that may not be drawn, so here all may.
    tokens, outcome = await reply(rig, "both-mean", ignore_eos=False)
    ids = [token.token.id for token in tokens]
    known_by_all = [likelihoods(name, PROMPTS[0], ids)[0] for name in MEMBERS]
    assert outcome.weights == pytest.approx(posterior(known_by_all), abs=1e-5)


@pytest.mark.parametrize("blend", ["tokens", "both", "replies"])
async def test_they_cost_no_forward_pass_and_no_step_more(rig: Rig, blend: str) -> None:
    prompt = f"And it came to pass in {blend}, that the king said"
    tokens, outcome = await reply(rig, blend, prompt, seed=5)
    # As with fixed weights: a pass per token, and one for each other member to read the prompt.
    num_passes = sum(usage.seat.forward_passes for usage in outcome.usage)
    assert len(outcome.usage) == 2
    assert num_passes == len(tokens) + len(outcome.usage) - 1
    num_runs = 1 + sum(a.member != b.member for a, b in pairwise(tokens))
    assert sum(usage.seat.steps for usage in outcome.usage) == num_runs
    assert all(usage.leases == 1 for usage in outcome.usage)


@pytest.mark.parametrize("blend", ["mean", "both-mean"])
async def test_a_mean_takes_one_pass_per_member_and_token_all_the_same(
    rig: Rig, blend: str
) -> None:
    tokens, outcome = await reply(rig, blend, f"And it came to pass in {blend}, that")
    assert [usage.seat.forward_passes for usage in outcome.usage] == [len(tokens)] * 2


async def test_who_does_not_speak_is_given_back_once_it_has_read(rig: Rig) -> None:
    request = GenerationRequest(
        "replies", Prompt(text=PROMPTS[0]), Sampling(seed=1), Stopping(max_tokens=NUM_TOKENS)
    )
    async for update in rig.router.generate(request):
        if update.tokens:
            assert rig.num_held() == (1, 1)


async def test_each_style_has_the_member_that_writes_it_speak(rig: Rig) -> None:
    held_out = Path(cluster.models.__file__).parent / "embedded" / "held_out"
    for name in ("austen", "kjv", "bierce"):
        text = (held_out / f"{name}.txt").read_text()
        parts = [text[begin : begin + 200] for begin in range(0, 2000, 500)]
        for _, outcome in await asyncio.gather(*(reply(rig, "three", part) for part in parts)):
            assert max(outcome.weights, key=outcome.weights.__getitem__) == name


@pytest.mark.parametrize("blend", ["tokens", "mean", "replies"])
async def test_a_replica_lost_while_it_reads_the_prompt_is_replaced(blend: str) -> None:
    async with running(SPEC, num_replicas=2) as rig:
        undisturbed, before = await reply(rig, blend, seed=2)
        await reply(rig, "fixed")  # so that both members' turn is at their first replica again
        stuck = rig.servers["kjv"][0]
        engine = stuck.replica.engine

        def swallow(work: object) -> None:
            """It has the prompt, and goes before it has read it."""
            rig.members["kjv"].servers.remove(stuck)
            stuck.replica._loop.create_task(stuck.stop())

        engine.submit = swallow  # type: ignore[method-assign]
        tokens, outcome = await reply(rig, blend, seed=2)
    assert stuck not in rig.members["kjv"].servers
    assert [t.token.id for t in tokens] == [t.token.id for t in undisturbed]
    assert outcome.weights == pytest.approx(before.weights, abs=1e-6)
    assert [usage.leases for usage in outcome.usage] == [1, 2]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("blend", ["tokens", "mean", "both", "both-mean", "replies"])
async def test_a_score_has_the_law_of_the_reply(rig: Rig, blend: str, temperature: float) -> None:
    prompt, text = PROMPTS[0], " Go ye into the city, and bring him unto me."
    score = await rig.router.score(
        ScoreRequest(blend, Prompt(text=prompt), text, Sampling(temperature=temperature))
    )
    ids = [token.id for token in score.members[0].tokens]
    own, warped = [], []
    for name in MEMBERS:
        tokenizer, model = loaded(name)
        known, num_prompt = likelihoods(name, prompt, ids)
        own.append(known)
        all_ids = torch.tensor([[*tokenizer(prompt).input_ids, *ids]])  # type: ignore[operator]
        with torch.inference_mode():
            logits = model(all_ids).logits[0].double()  # type: ignore[operator]
        rows = torch.log_softmax(logits / temperature, -1)[num_prompt:]
        warped.append([float(rows[i, token]) for i, token in enumerate(ids)])
    for position in range(len(ids)):
        end = num_prompt + position if blend.startswith("both") else num_prompt
        window = 30 if blend == "both" else 0
        weights = posterior([known[:end] for known in own], window)
        parts = [w * math.exp(p[position]) for w, p in zip(weights.values(), warped, strict=True)]
        if blend != "replies":
            assert score.mixture[position].logprob == pytest.approx(math.log(sum(parts)), abs=1e-4)
    totals = [math.fsum(known) for known in warped]
    expected = (
        float(
            np.logaddexp(*(math.log(w) + t for w, t in zip(weights.values(), totals, strict=True)))
        )
        if blend == "replies"
        else math.fsum(token.logprob for token in score.mixture)
    )
    assert score.logprob == pytest.approx(expected, abs=1e-3)


async def test_a_pinned_member_reads_no_weights_out_of_the_prompt(rig: Rig) -> None:
    for blend in ("tokens", "mean", "replies"):
        tokens, outcome = await reply(rig, blend, overrides=Overrides(member="austen"))
        assert {token.member for token in tokens} == {"austen"}
        assert outcome.weights == {}
        assert [usage.member for usage in outcome.usage] == ["austen"]


async def test_chats_that_members_render_differently_are_refused(tmp_path: Path) -> None:
    other = tmp_path / "kjv"
    shutil.copytree(resolve("embedded:tiny-kjv", download=False), other)
    template = other / "chat_template.jinja"
    template.write_text("Question: " + template.read_text())
    text = SPEC.replace("embedded:tiny-kjv", str(other))
    chat = Prompt(messages=(Message("user", "And who is my neighbour?"),))
    async with running(text) as rig:
        for blend in ("tokens", "mean", "both"):
            with pytest.raises(Unsupported, match="austen, kjv read different tokens") as refused:
                await reply(rig, blend, chat)
            assert refused.value.field == "chat"
            with pytest.raises(Unsupported, match="read different tokens"):
                await rig.router.score(ScoreRequest(blend, chat, "He that shewed mercy."))
        assert rig.num_held() == (0, 0)
        await reply(rig, "fixed", chat)
        assert (await reply(rig, "tokens"))[1].weights  # plain text they read alike
        assert (await reply(rig, "replies", chat, overrides=Overrides(member="kjv")))[0]


async def test_chats_that_members_render_alike_are_weighed(rig: Rig) -> None:
    chat = Prompt(messages=(Message("user", "And the LORD spake unto Moses, saying,"),))
    _, outcome = await reply(rig, "tokens", chat)
    assert outcome.weights["kjv"] > 0.7
