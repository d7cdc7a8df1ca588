"""Adaptive weights over the whole path: at no pass more, by the likelihoods of transformers."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import cluster.models
from cluster.blending.adaptive import Adaptation, Evidence
from cluster.errors import InvalidRequest
from cluster.members.base import Prompt
from cluster.models.resolve import resolve
from cluster.router.answers import FinishReason, Outcome, ReplyToken
from cluster.router.requests import GenerationRequest, Overrides, Sampling, ScoreRequest, Stopping
from tests.rig import Rig, running

pytestmark = pytest.mark.asyncio(loop_scope="module")

MEMBERS = ("austen", "kjv")
TINY = "dtype: float32, kv_memory: 32MiB"
BLEND = "method: mixture, members: {austen: 0.5, kjv: 0.5}"
SPEC = f"""
version: 1
members:
  austen: {{model: embedded:tiny-austen, {TINY}}}
  kjv: {{model: embedded:tiny-kjv, {TINY}}}
  bierce: {{model: embedded:tiny-bierce, {TINY}}}
blends:
  fixed: {{{BLEND}}}
  adaptive: {{{BLEND}, adapt: {{floor: 0.02}}}}
  words: {{{BLEND}, span: word, adapt: {{strength: 0.5, window: 16, floor: 0.02}}}}
  mean: {{{BLEND.replace("mixture", "ensemble")}, exact: true, adapt: {{floor: 0.02}}}}
  three: {{method: mixture, members: {{austen: 1, kjv: 1, bierce: 1}}}}
"""
PROMPT = "And it came to pass, that the king said unto the people,"
NUM_TOKENS = 120


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rig() -> AsyncIterator[Rig]:
    async with running(SPEC) as rig:
        yield rig


async def reply(
    rig: Rig, blend: str, seed: int = 1, *, ignore_eos: bool = True
) -> tuple[list[ReplyToken], Outcome]:
    request = GenerationRequest(
        blend,
        Prompt(text=PROMPT),
        Sampling(seed=seed),
        Stopping(max_tokens=NUM_TOKENS, ignore_eos=ignore_eos),
    )
    updates = [update async for update in rig.router.generate(request)]
    outcome = updates[-1].outcome
    assert outcome is not None
    return [token for update in updates for token in update.tokens], outcome


def likelihoods(name: str, ids: list[int]) -> list[float]:
    """Log-probability of each of the reply's tokens, by transformers alone."""
    folder = resolve(f"embedded:tiny-{name}", download=False)
    prompt = AutoTokenizer.from_pretrained(folder)(PROMPT).input_ids
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        rows = torch.log_softmax(model(torch.tensor([prompt + ids])).logits[0].double(), -1)
    at = range(len(prompt) - 1, len(prompt) + len(ids) - 1)
    return [float(rows[row, token]) for row, token in zip(at, ids, strict=True)]


@pytest.mark.parametrize("blend", ["adaptive", "words"])
async def test_weights_are_the_posterior_under_plain_transformers(rig: Rig, blend: str) -> None:
    tokens, outcome = await reply(rig, blend)
    ids = [token.token.id for token in tokens]
    adapt = rig.spec.blends[blend].adapt  # type: ignore[union-attr]
    assert adapt is not None
    evidence = Evidence([0.5, 0.5], Adaptation(adapt.strength, adapt.window, adapt.floor))
    # The last speaker has read everything, the other all up to its own last token.
    for member, name in enumerate(MEMBERS):
        read = 1 + max(token.position for token in tokens if token.member == name)
        evidence.note(member, 0, likelihoods(name, ids)[:read])
    expected = dict(zip(MEMBERS, evidence.weights(), strict=True))
    assert outcome.weights == pytest.approx(expected, abs=1e-3)
    assert outcome.weights != pytest.approx({"austen": 0.5, "kjv": 0.5}, abs=0.01)
    assert dict(tokens[0].weights) == {"austen": 0.5, "kjv": 0.5}, "its speaker's draw knew nothing"
    assert all(sum(w for _, w in token.weights) == pytest.approx(1) for token in tokens)


async def test_its_numbers_can_be_other_ones_for_a_request(rig: Rig) -> None:
    async def weights(**parameters: float) -> dict[str, float]:
        given = {f"adapt.{name}": value for name, value in parameters.items()}
        request = GenerationRequest(
            "adaptive",
            Prompt(text=PROMPT),
            Sampling(seed=1),
            Stopping(max_tokens=20, ignore_eos=True),
            overrides=Overrides(parameters=given),
        )
        updates = [update async for update in rig.router.generate(request)]
        outcome = updates[-1].outcome
        assert outcome is not None
        return dict(outcome.weights)

    assert await weights(strength=0.0) == pytest.approx({"austen": 0.5, "kjv": 0.5})
    assert min((await weights(strength=50.0, floor=0.3)).values()) == pytest.approx(0.3)
    for parameters, words in (
        ({"floor": 0.7}, "got 0.7"),
        ({"window": 1.5}, "expected tokens looked back at"),
        ({"depth": 1.0}, "adapt.strength, adapt.window, adapt.floor"),
    ):
        with pytest.raises(InvalidRequest, match=words) as caught:
            await weights(**parameters)
        assert caught.value.field == f"overrides.parameters[adapt.{next(iter(parameters))}]"


async def test_a_mean_adapts_to_all_that_was_said_at_one_pass_per_member_and_token(
    rig: Rig,
) -> None:
    tokens, outcome = await reply(rig, "mean", ignore_eos=False)
    num_drawn = len(tokens) + (outcome.finish_reason is FinishReason.END_OF_TURN)
    assert num_drawn > 20
    evidence = Evidence([0.5, 0.5], Adaptation(floor=0.02))
    ids = [token.token.id for token in tokens]
    logprobs = [likelihoods(name, ids) for name in MEMBERS]
    for position, token in enumerate(tokens):
        weights = evidence.weights()
        parts = [w * math.exp(known[position]) for w, known in zip(weights, logprobs, strict=True)]
        assert math.exp(token.token.logprob) == pytest.approx(sum(parts), abs=1e-5)
        shares = {name: part / sum(parts) for name, part in zip(MEMBERS, parts, strict=True)}
        assert dict(token.shares) == pytest.approx(shares, abs=1e-3)
        for member in range(2):
            evidence.note(member, position, [logprobs[member][position]])
    assert outcome.weights == pytest.approx(
        dict(zip(MEMBERS, evidence.weights(), strict=True)), abs=1e-3
    )
    assert all(usage.seat.forward_passes == num_drawn for usage in outcome.usage)


async def test_they_cost_no_forward_pass_and_no_message_more(rig: Rig) -> None:
    for blend in ("adaptive", "fixed"):
        tokens, outcome = await reply(rig, blend, seed=5)
        num_passes = sum(usage.seat.forward_passes for usage in outcome.usage)
        num_runs = 1 + sum(a.member != b.member for a, b in pairwise(tokens))
        assert num_passes == len(tokens) + len(outcome.usage) - 1
        assert sum(usage.seat.steps for usage in outcome.usage) == num_runs


async def test_a_reply_settles_on_one_style_and_with_fixed_weights_it_does_not(rig: Rig) -> None:
    distance: dict[str, list[float]] = {"adaptive": [], "fixed": []}
    for blend, found in distance.items():
        for tokens, _ in await asyncio.gather(*(reply(rig, blend, seed) for seed in range(8))):
            late = tokens[NUM_TOKENS // 2 :]
            share = sum(token.member == "kjv" for token in late) / len(late)
            found.append(abs(share - 0.5))
    assert np.mean(distance["adaptive"]) > 2 * np.mean(distance["fixed"])


async def test_the_same_seed_gives_the_same_text_after_a_loss() -> None:
    async with running(SPEC, num_replicas=2) as rig:
        undisturbed, _ = await reply(rig, "adaptive", seed=2)
        request = GenerationRequest(
            "adaptive",
            Prompt(text=PROMPT),
            Sampling(seed=2),
            Stopping(max_tokens=NUM_TOKENS, ignore_eos=True),
        )
        tokens: list[ReplyToken] = []
        lost = None
        async for update in rig.router.generate(request):
            tokens += update.tokens
            if lost is None and len(tokens) > 20:
                lost = next(server for server in rig.all_servers if server.replica.num_sequences)
                for name, group in rig.servers.items():
                    if lost in group:
                        rig.members[name].servers.remove(lost)
                await lost.stop()
    assert [t.token.id for t in tokens] == [t.token.id for t in undisturbed]


def interleaved(num_blocks: int, block_chars: int = 300) -> list[str]:
    """Held-out text that changes its style every so many characters; a list of passages."""
    held_out = Path(cluster.models.__file__).parent / "embedded" / "held_out"
    texts = [(held_out / f"{name}.txt").read_text() for name in ("austen", "kjv", "bierce")]
    passages = []
    for block in range(num_blocks):
        at = 900 * block
        passages.append("".join(text[at : at + block_chars] for text in texts))
    return passages


async def test_on_interleaved_text_they_beat_every_member_and_fixed_weights(rig: Rig) -> None:
    """Bits per character of held-out text, each token by what was known before it.

    A paired bootstrap over passages; the interval of each difference must be above 0 in 99.9%.
    """
    names = ("austen", "kjv", "bierce")
    bits: dict[str, list[float]] = {key: [] for key in (*names, "fixed", "adaptive")}
    for passage in interleaved(24):
        head, rest = passage[:20], passage[20:]
        score = await rig.router.score(
            ScoreRequest("three", Prompt(text=head), rest, Sampling(temperature=1.0))
        )
        logprobs = [[token.logprob for token in member.tokens] for member in score.members]
        evidence = Evidence([1 / 3] * 3, Adaptation(strength=0.7, window=24, floor=0.02))
        totals = dict.fromkeys(("fixed", "adaptive"), 0.0)
        for position, values in enumerate(zip(*logprobs, strict=True)):
            probs = np.exp(values)
            totals["fixed"] += math.log2(float(probs.mean()))
            totals["adaptive"] += math.log2(float(np.dot(evidence.weights(), probs)))
            for member, value in enumerate(values):
                evidence.note(member, position, [value])
        for name, values in zip(names, logprobs, strict=True):
            bits[name].append(-sum(values) / math.log(2) / len(rest))
        for key, total in totals.items():
            bits[key].append(-total / len(rest))
    rng = np.random.default_rng(0)
    picks = rng.integers(0, 24, (10_000, 24))
    for rival in (*names, "fixed"):
        gain = np.array(bits[rival]) - np.array(bits["adaptive"])
        assert np.quantile(gain[picks].mean(axis=1), 0.001) > 0, (rival, gain.mean())
