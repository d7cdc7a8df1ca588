"""Blends whose members all take part in every token, over the whole path, against transformers."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import aclosing
from copy import copy
from functools import cache
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import torch
from scipy.stats import chisquare
from transformers import AutoModelForCausalLM, AutoTokenizer

from cluster.errors import InvalidRequest, Unsupported
from cluster.members.base import Prompt
from cluster.models.resolve import resolve
from cluster.router.answers import FinishReason, Outcome, ReplyToken
from cluster.router.requests import (
    GenerationRequest,
    Output,
    Overrides,
    Sampling,
    ScoreRequest,
    Stopping,
)
from tests.reference import warp
from tests.rig import Rig, running

pytestmark = pytest.mark.asyncio(loop_scope="module")

FALSE_ALARM_RATE = 1e-6
MEMBERS = ("base", "austen", "kjv")
TINY = "dtype: float32, kv_memory: 32MiB"
SPEC = f"""
version: 1
members:
  base: {{model: embedded:tiny-base, {TINY}}}
  austen: {{model: embedded:tiny-austen, {TINY}}}
  kjv: {{model: embedded:tiny-kjv, {TINY}}}
  bytes: {{model: embedded:tiny-bytes, {TINY}}}
blends:
  mean: {{method: ensemble, exact: true, members: {{austen: 0.35, kjv: 0.65}}}}
  product: {{method: ensemble, rule: product, exact: true, members: {{austen: 0.35, kjv: 0.65}}}}
  few: {{method: ensemble, candidates: 16, members: {{austen: 0.35, kjv: 0.65}}}}
  proxy: {{method: proxy, alpha: 0.8, members: {{base: base, austen: expert, kjv: anti}}}}
  contrast: {{method: contrast, beta: 0.5, members: {{austen: expert, base: amateur}}}}
  unlike: {{method: ensemble, members: {{austen: 1, bytes: 1}}}}
  tokens: {{method: mixture, members: {{austen: 0.35, kjv: 0.65}}}}
limits: {{max_new_tokens: 400}}
"""
PROMPTS = ["My dear", "And it came to pass that the", "It is a truth universally", "He"]
WARPS = [(1.0, 1.0), (0.7, 0.9)]  # temperature, top-p


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rig() -> AsyncIterator[Rig]:
    async with running(SPEC) as rig:
        yield rig


async def reply(
    rig: Rig, blend: str, prompt: str = PROMPTS[0], *, max_tokens: int = 40, **fields: Any
) -> tuple[str, list[ReplyToken], Outcome]:
    sampling = Sampling(
        seed=fields.pop("seed", 1),
        temperature=fields.pop("temperature", None),
        top_p=fields.pop("top_p", None),
    )
    stopping = Stopping(max_tokens=max_tokens, ignore_eos=fields.pop("ignore_eos", True))
    request = GenerationRequest(blend, Prompt(text=prompt), sampling, stopping, **fields)
    updates = [update async for update in rig.router.generate(request)]
    outcome = updates[-1].outcome
    assert outcome is not None
    text = "".join(update.text for update in updates)
    return text, [token for update in updates for token in update.tokens], outcome


@cache
def plain(prompt: str) -> dict[str, np.ndarray]:
    """Each member's log-probabilities of the next token, by transformers alone."""
    found = {}
    for name in MEMBERS:
        folder = resolve(f"embedded:tiny-{name}", download=False)
        ids = AutoTokenizer.from_pretrained(folder)(prompt, return_tensors="pt").input_ids
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        with torch.inference_mode():
            found[name] = torch.log_softmax(model(ids).logits[0, -1].double(), -1).numpy()
    return found


def expected(blend: str, prompt: str, temperature: float, top_p: float) -> np.ndarray:
    """The blend's law of the next token, as its paper has it."""
    p = plain(prompt)
    if blend == "mean":
        shares = {"austen": 0.35, "kjv": 0.65}
        return sum(w * warp(p[name], temperature, top_p) for name, w in shares.items())  # type: ignore[return-value]
    if blend == "product":
        combined = 0.35 * p["austen"] + 0.65 * p["kjv"]
    elif blend == "proxy":
        combined = p["base"] + 0.8 * (p["austen"] - p["kjv"])
    else:
        plausible = p["austen"] >= p["austen"].max() + np.log(0.1)
        combined = np.where(plausible, p["austen"] - 0.5 * p["base"], -np.inf)
    return warp(combined, temperature, top_p)


@pytest.mark.parametrize(("temperature", "top_p"), WARPS)
@pytest.mark.parametrize("blend", ["mean", "product", "proxy", "contrast"])
async def test_the_distribution_is_that_of_the_paper(
    rig: Rig, blend: str, temperature: float, top_p: float
) -> None:
    for prompt in PROMPTS:
        _, tokens, _ = await reply(
            rig,
            blend,
            prompt,
            max_tokens=1,
            temperature=temperature,
            top_p=top_p,
            output=Output(num_top_candidates=20),
            ignore_eos=False,
        )
        law = expected(blend, prompt, temperature, top_p)
        (token,) = tokens
        assert np.exp(token.token.logprob) == pytest.approx(law[token.token.id], abs=1e-5)
        for candidate in token.token.top:
            assert np.exp(candidate.logprob) == pytest.approx(law[candidate.id], abs=1e-5)
        num_possible = min(20, int((law > 0).sum()))
        assert len(token.token.top) == num_possible
        best = sorted(law)[-num_possible:]
        assert sum(best) == pytest.approx(sum(np.exp(c.logprob) for c in token.token.top), abs=1e-4)


async def test_greedy_takes_the_best_of_what_is_not_warped(rig: Rig) -> None:
    for blend in ("mean", "product", "proxy", "contrast"):
        _, tokens, _ = await reply(rig, blend, max_tokens=1, temperature=0.0, ignore_eos=False)
        assert tokens[0].token.id == int(np.argmax(expected(blend, PROMPTS[0], 1.0, 1.0)))
        assert tokens[0].token.logprob == 0.0


@pytest.mark.parametrize(("temperature", "top_p"), WARPS)
async def test_the_exact_mean_is_drawn_by_its_law(
    rig: Rig, temperature: float, top_p: float
) -> None:
    """It is the law of `mixture/token` as well, which test_law.py draws by."""
    num = 750
    room = asyncio.Semaphore(32)

    async def first(seed: int) -> int:
        async with room:
            _, tokens, _ = await reply(
                rig, "mean", max_tokens=1, seed=seed, temperature=temperature, top_p=top_p
            )
        return tokens[0].token.id

    law = expected("mean", PROMPTS[0], temperature, top_p)
    law[rig_end(rig)] = 0.0  # ignore_eos bans it; it is none of the likely ones here
    law /= law.sum()
    likely = np.flatnonzero(law * num >= 5)
    counts = Counter(await asyncio.gather(*(first(seed) for seed in range(num))))
    observed = [counts[i] for i in likely]
    wanted = law[likely] * num
    rest = num - sum(observed), num - wanted.sum()
    if rest[1] >= 5:
        observed, wanted = [*observed, rest[0]], np.append(wanted, rest[1])
    assert chisquare(observed, wanted * sum(observed) / wanted.sum()).pvalue > FALSE_ALARM_RATE


def rig_end(rig: Rig) -> int:
    (end,) = rig.router.blend("mean").tokens["austen"].end_ids
    return end


async def test_every_member_takes_one_pass_per_token_whatever_it_is_asked(rig: Rig) -> None:
    for blend in ("mean", "few", "proxy", "contrast"):
        _, tokens, outcome = await reply(rig, blend, "A prompt of its own, " + blend)
        for usage in outcome.usage:
            assert usage.seat.forward_passes == len(tokens) == 40
            assert usage.seat.processed_tokens + usage.seat.cached_tokens == (
                usage.seat.prompt_tokens + len(tokens) - 1
            )


async def test_candidates_cost_few_bytes_and_whole_vocabularies_many(rig: Rig) -> None:
    cost = {}
    for blend in ("few", "mean"):
        before = copy(rig.exchanges.counts)
        _, tokens, _ = await reply(rig, blend)
        after = rig.exchanges.counts
        cost[blend] = (after.bytes_received - before.bytes_received) / len(tokens)
    assert cost["few"] < 2 * (16 + 16) * 8 + 150  # two members; candidates and asked-for ids
    assert cost["mean"] > 2 * 2048 * 4


async def test_a_truncated_mean_reports_its_bound_and_an_exact_one_none(rig: Rig) -> None:
    _, tokens, _ = await reply(rig, "few")
    assert all(0 < token.bound < 1 for token in tokens)
    _, tokens, _ = await reply(rig, "few", temperature=0.3, top_p=0.5)
    assert sum(token.bound == 0 for token in tokens) > len(tokens) / 2
    _, tokens, _ = await reply(rig, "mean")
    assert all(token.bound < 1e-9 for token in tokens)


async def test_tokens_say_how_much_each_member_had_to_do_with_them(rig: Rig) -> None:
    _, tokens, _ = await reply(rig, "mean")
    for token in tokens:
        shares = dict(token.shares)
        assert set(shares) == {"austen", "kjv"}
        assert sum(shares.values()) == pytest.approx(1)
        assert shares[token.member] == max(shares.values())
    assert len({token.member for token in tokens}) == 2


@pytest.mark.parametrize("blend", ["mean", "few", "product", "proxy", "contrast"])
async def test_a_reply_is_the_same_alone_and_among_others(rig: Rig, blend: str) -> None:
    alone = [await reply(rig, blend, seed=seed, max_tokens=30) for seed in range(2)]
    same = [reply(rig, blend, seed=seed, max_tokens=30) for seed in range(2)]
    others = [reply(rig, other, seed=9) for other in ("mean", "few", "tokens", "proxy")]
    together = await asyncio.gather(*same, *others)
    assert [text for text, _, _ in together[:2]] == [text for text, _, _ in alone]


async def test_a_lost_replica_leaves_no_trace_in_a_text_by_all() -> None:
    async with running(SPEC, num_replicas=2) as rig:
        undisturbed, _, _ = await reply(rig, "few", max_tokens=60)
        lost = None
        request = GenerationRequest(
            "few", Prompt(text=PROMPTS[0]), Sampling(seed=1), Stopping(60, ignore_eos=True)
        )
        text = ""
        async for update in rig.router.generate(request):
            text += update.text
            if lost is None and len(text) > 40:
                lost = next(s for s in rig.servers["austen"] if s.replica.num_sequences)
                rig.members["austen"].servers.remove(lost)
                await lost.stop()
            outcome = update.outcome
    assert text == undisturbed
    assert outcome is not None
    assert sum(usage.leases for usage in outcome.usage) == 3


async def test_leaving_early_gives_everything_back(rig: Rig) -> None:
    request = GenerationRequest("mean", Prompt(text="He"), Sampling(seed=1), Stopping(300))
    async with aclosing(rig.router.generate(request)) as updates:
        async for update in updates:
            if update.tokens:
                break
        assert rig.num_held() == (2, 2)
    while rig.num_held() != (0, 0):
        await asyncio.sleep(0.01)
    for server in rig.all_servers:
        while server.replica.engine._engine._rows:  # type: ignore[attr-defined]
            await asyncio.sleep(0.01)


async def test_a_turn_ends_and_everything_is_given_back(rig: Rig) -> None:
    replies = [reply(rig, "few", "And", seed=s, max_tokens=400, ignore_eos=False) for s in range(8)]
    outcomes = [outcome for _, _, outcome in await asyncio.gather(*replies)]
    assert any(outcome.finish_reason is FinishReason.END_OF_TURN for outcome in outcomes)
    assert rig.num_held() == (0, 0)


async def test_parameters_can_be_overridden_and_change_the_text(rig: Rig) -> None:
    text, _, _ = await reply(rig, "proxy")
    other, _, _ = await reply(rig, "proxy", overrides=Overrides(parameters={"alpha": 3.0}))
    plain_base, _, _ = await reply(rig, "proxy", overrides=Overrides(parameters={"alpha": 0.0}))
    _, tokens, _ = await reply(rig, "proxy", overrides=Overrides(member="base"))
    assert len({text, other, plain_base}) == 3
    assert {token.member for token in tokens} == {"base"}


def parameter(name: str, value: float) -> Overrides:
    return Overrides(parameters={name: value})


BAD: list[tuple[str, Overrides, str, str]] = [
    ("proxy", parameter("beta", 1.0), "UNKNOWN_PARAMETER", "parameters[beta]"),
    ("tokens", parameter("alpha", 1.0), "UNKNOWN_PARAMETER", "parameters[alpha]"),
    ("few", parameter("candidates", 0.5), "INVALID_VALUE", "parameters[candidates]"),
    ("contrast", parameter("plausibility", 2.0), "INVALID_VALUE", "parameters[plausibility]"),
    ("proxy", Overrides(weights={"base": 1.0}), "INVALID_OVERRIDE", "weights"),
    ("mean", Overrides(span=3), "INVALID_OVERRIDE", "span"),
]


@pytest.mark.parametrize(("blend", "overrides", "reason", "field"), BAD)
async def test_overrides_that_the_method_lacks_are_refused(
    rig: Rig, blend: str, overrides: Overrides, reason: str, field: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await reply(rig, blend, overrides=overrides)
    assert (caught.value.reason, caught.value.field) == (reason, f"overrides.{field}")


async def test_members_of_unlike_vocabularies_are_refused(rig: Rig) -> None:
    with pytest.raises(Unsupported, match="method ensemble") as caught:
        await reply(rig, "unlike")
    assert caught.value.reason == "VOCABULARY_MISMATCH"


async def test_a_text_scores_under_every_rule_as_its_formula_says(rig: Rig) -> None:
    prompt, continuation = "It is a truth", " universally acknowledged"
    folder = resolve("embedded:tiny-base", download=False)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pieces = [tokenizer.decode([i]) for i in tokenizer(continuation).input_ids]
    assert "".join(pieces) == continuation
    for blend in ("mean", "product", "proxy", "contrast"):
        score = await rig.router.score(ScoreRequest(blend, Prompt(text=prompt), continuation))
        wanted, text = [], prompt
        for piece, token in zip(pieces, score.members[0].tokens, strict=True):
            with np.errstate(divide="ignore"):
                wanted.append(float(np.log(expected(blend, text, 1.0, 1.0)[token.id])))
            text += piece
        assert [token.logprob for token in score.mixture] == pytest.approx(wanted, abs=1e-4)
        assert score.logprob == pytest.approx(sum(wanted), abs=1e-3)
    mixture = await rig.router.score(ScoreRequest("tokens", Prompt(text=prompt), continuation))
    mean = await rig.router.score(ScoreRequest("mean", Prompt(text=prompt), continuation))
    assert mean.logprob == pytest.approx(mixture.logprob)
