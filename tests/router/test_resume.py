"""A reply that another router goes on with: the rest is what the undisturbed one says."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from cluster.blending.gates import Network
from cluster.errors import InvalidRequest, Unsupported
from cluster.gates.file import GateInputs, save_gate
from cluster.members.base import Prompt
from cluster.router.answers import FinishReason, Outcome, ReplyToken
from cluster.router.requests import GenerationRequest, Output, Sampling, Stopping
from cluster.router.resumption import ReceivedToken, Resumption
from cluster.spec import parse_spec
from cluster.text.grammar import OutputFormat
from cluster.text.utf8 import Utf8Stream
from tests.rankers.checkpoints import make_ranker
from tests.rig import Rig, running

pytestmark = pytest.mark.asyncio(loop_scope="module")

TINY = "dtype: float32, kv_memory: 32MiB"
PAIR = "members: {austen: 0.5, kjv: 0.5}"
UNLIKE = "members: {austen: 0.5, bytes: 0.5}"
SPEC = f"""
version: 1
members:
  base: {{model: embedded:tiny-base, {TINY}}}
  austen: {{model: embedded:tiny-austen, {TINY}}}
  kjv: {{model: embedded:tiny-kjv, {TINY}}}
  bytes: {{model: embedded:tiny-bytes, {TINY}}}
  short: {{model: embedded:tiny-austen, max_context: 32, {TINY}}}
rankers:
  alike: {{model: FOLDER/encoder, kind: embedding, dtype: float32}}
blends:
  tokens: {{method: mixture, {PAIR}}}
  threes: {{method: mixture, span: 3, {PAIR}}}
  words: {{method: mixture, span: word, {PAIR}}}
  sentences: {{method: mixture, span: sentence, {PAIR}}}
  replies: {{method: mixture, span: response, {PAIR}}}
  unlike: {{method: mixture, span: word, {UNLIKE}}}
  unlike-threes: {{method: mixture, span: 3, {UNLIKE}}}
  full: {{method: mixture, members: {{short: 0.5, kjv: 0.5}}}}
  full-adaptive: {{method: mixture, adapt: {{floor: 0.05}}, members: {{short: 0.5, kjv: 0.5}}}}
  adaptive: {{method: mixture, adapt: {{floor: 0.05}}, {PAIR}}}
  adaptive-words: {{method: mixture, span: word, adapt: {{window: 8, floor: 0.05}}, {PAIR}}}
  adaptive-prompt: {{method: mixture, adapt: {{evidence: prompt, strength: 0.05}}, {PAIR}}}
  adaptive-both: {{method: mixture, span: 2, adapt: {{evidence: both, strength: 0.1}}, {PAIR}}}
  mean: {{method: ensemble, candidates: 16, {PAIR}}}
  product: {{method: ensemble, rule: product, exact: true, {PAIR}}}
  learning: {{method: ensemble, exact: true, adapt: {{floor: 0.02}}, {PAIR}}}
  proxy: {{method: proxy, members: {{base: base, austen: expert, kjv: anti}}}}
  contrast: {{method: contrast, beta: 0.5, members: {{austen: expert, base: amateur}}}}
  letters: {{method: ensemble, unit: byte, {UNLIKE}}}
  learning-letters: {{method: ensemble, unit: byte, adapt: {{floor: 0.02}}, {UNLIKE}}}
  sure: {{method: route, {PAIR}, gate: {{by: confidence, first: austen}}, threshold: 0.3}}
  sure-threes: {{method: route, span: 3, {PAIR}, threshold: 0.3,
                gate: {{by: entropy, first: austen}}}}
  sure-words: {{method: route, span: word, {UNLIKE}, threshold: 0.2,
               gate: {{by: confidence, first: austen}}}}
  near: {{method: route, {PAIR}, top: 2, gate: {{by: examples, ranker: alike,
         examples: {{austen: [My dear], kjv: [And God said]}}}}}}
  learned: {{method: route, {PAIR}, top: 2, span: 2,
            gate: {{by: learned, file: FOLDER/state.gate, reader: kjv}}}}
  learned-words: {{method: route, {PAIR}, top: 2, span: word,
                  gate: {{by: learned, file: FOLDER/state.gate, reader: kjv}}}}
  learned-whole: {{method: route, {PAIR}, span: response,
                  gate: {{by: learned, file: FOLDER/state.gate, reader: kjv}}}}
  likely: {{method: choose, rank: likelihood, {PAIR}}}
  team: {{method: fuse, members: {{austen: proposer, bytes: proposer, kjv: fuser}}}}
limits: {{max_new_tokens: 400, max_prompt_tokens: 300, lease_timeout_s: 2}}
"""
TURNS = ["tokens", "threes", "words", "sentences", "replies", "unlike", "unlike-threes"]
ADAPTIVE = ["adaptive", "adaptive-words", "adaptive-prompt", "adaptive-both"]
TOGETHER = ["mean", "product", "proxy", "contrast", "letters", "learning", "learning-letters"]
ROUTES = ["sure", "sure-threes", "sure-words", "near", "learned", "learned-words", "learned-whole"]
WHOLE = ["likely", "team"]
SEEDS = (1, 2)
NUM_TOKENS = 22
GATE_WEIGHTS = np.random.default_rng(3).normal(0, 0.1, (2, 128)).astype(np.float32)
GATE = Network([(GATE_WEIGHTS, np.zeros(2, np.float32))])
PROMPT = Prompt(text="It is a truth")
GARBLED = Prompt(text="日本語 and “quotes” – naïve: ")


@dataclass
class Reply:
    """What came of one call."""

    text: str
    tokens: list[ReplyToken]
    outcome: Outcome

    @property
    def received(self) -> tuple[ReceivedToken, ...]:
        return tuple(
            ReceivedToken(t.member, t.token.id, t.token.bytes, t.weights) for t in self.tokens
        )

    def visible(self, num_tokens: int) -> str:
        """The whole characters of the first tokens."""
        return Utf8Stream().push(b"".join(t.token.bytes for t in self.tokens[:num_tokens]))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rig(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Rig]:
    folder = tmp_path_factory.mktemp("models")
    make_ranker(folder / "encoder", num_labels=None)
    text = SPEC.replace("FOLDER", str(folder))
    spec = parse_spec(text)
    route = spec.blends["learned"]
    save_gate(folder / "state.gate", GATE, GateInputs.of(spec, route))  # type: ignore[arg-type]
    async with running(text) as rig:
        yield rig


def asked(blend: str, seed: int = 1, prompt: Prompt = PROMPT, **fields: Any) -> GenerationRequest:
    stopping = fields.pop("stopping", Stopping(max_tokens=NUM_TOKENS))
    sampling = fields.pop("sampling", Sampling(seed=seed))
    return GenerationRequest(blend, prompt, sampling, stopping, **fields)


async def reply(rig: Rig, request: GenerationRequest) -> Reply:
    updates = [update async for update in rig.router.generate(request)]
    outcome = updates[-1].outcome
    assert outcome is not None
    tokens = [token for update in updates for token in update.tokens]
    return Reply("".join(update.text for update in updates), tokens, outcome)


async def rest(rig: Rig, request: GenerationRequest, whole: Reply, num_tokens: int) -> Reply:
    """What comes for a caller that has so many tokens."""
    resumption = Resumption(whole.received[:num_tokens], whole.outcome.revision)
    return await reply(rig, replace(request, resumption=resumption))


def same(found: Sequence[ReplyToken], expected: Sequence[ReplyToken]) -> bool:
    """Whether tokens are the same in everything that the same numbers decide."""
    near = {"rel_tol": 1e-3, "abs_tol": 1e-3}
    return len(found) == len(expected) and all(
        (a.member, a.position, a.token.id, a.token.bytes)
        == (b.member, b.position, b.token.id, b.token.bytes)
        and math.isclose(a.token.logprob, b.token.logprob, **near)
        and [n for n, _ in a.weights] == [n for n, _ in b.weights]
        and all(
            math.isclose(x, y, **near) for (_, x), (_, y) in zip(a.weights, b.weights, strict=True)
        )
        for a, b in zip(found, expected, strict=True)
    )


def check_same_end(found: Outcome, expected: Outcome) -> None:
    assert found.finish_reason is expected.finish_reason
    assert found.stop_string == expected.stop_string
    assert (found.num_tokens, found.seed) == (expected.num_tokens, expected.seed)
    assert found.law is expected.law
    assert found.dropped_share == pytest.approx(expected.dropped_share, abs=1e-4)
    assert found.weights == pytest.approx(expected.weights, abs=1e-3)


@pytest.mark.parametrize("blend", [*TURNS, *ADAPTIVE, *TOGETHER, *ROUTES])
async def test_the_rest_is_the_rest_of_the_undisturbed_reply(rig: Rig, blend: str) -> None:
    for seed in SEEDS:
        request = asked(blend, seed, GARBLED if seed == 2 else PROMPT)
        whole = await reply(rig, request)
        num = len(whole.tokens)
        for cut in sorted({0, 1, 6, num // 2, num - 1, num} if seed == 1 else {1, num // 2}):
            found = await rest(rig, request, whole, cut)
            assert same(found.tokens, whole.tokens[cut:]), (seed, cut)
            assert found.text == whole.text[len(whole.visible(cut)) :]
            check_same_end(found.outcome, whole.outcome)


@pytest.mark.parametrize("blend", ["words", "unlike-threes", "sure", "mean"])
async def test_a_stop_string_that_was_held_back_is_still_found(rig: Rig, blend: str) -> None:
    free = await reply(rig, asked(blend))
    stop = free.text[len(free.text) // 2 :][:3]
    request = asked(
        blend, stopping=Stopping(max_tokens=NUM_TOKENS, stop=(stop, free.text[3:6] + "Q"))
    )
    whole = await reply(rig, request)
    assert whole.outcome.finish_reason is FinishReason.STOP_STRING
    # The last message has the stop string's tokens and the outcome: no caller has one alone.
    *_, before, last = [update async for update in rig.router.generate(request)]
    assert last.outcome is not None
    num_before = len(whole.tokens) - len(last.tokens)
    assert before.outcome is None
    for cut in range(num_before + 1):
        found = await rest(rig, request, whole, cut)
        assert same(found.tokens, whole.tokens[cut:]), cut
        assert found.text == whole.text[len(whole.visible(cut)) :]
        assert found.outcome.stop_string == whole.outcome.stop_string


@pytest.mark.parametrize("blend", ["tokens", "words", "adaptive", "mean", "proxy"])
async def test_a_format_is_kept_to(rig: Rig, blend: str) -> None:
    wanted = OutputFormat("regex", " [A-Z][a-z]{2,6} (of|the) [a-z]{3,9}\\.")
    request = asked(blend, 3, format=wanted)
    whole = await reply(rig, request)
    assert whole.outcome.finish_reason is FinishReason.END_OF_TURN
    for cut in range(len(whole.tokens) + 1):
        found = await rest(rig, request, whole, cut)
        assert same(found.tokens, whole.tokens[cut:]), cut
        check_same_end(found.outcome, whole.outcome)
    other = await reply(rig, asked(blend, 3))
    with pytest.raises(InvalidRequest) as caught:
        await reply(rig, replace(request, resumption=Resumption(other.received[:5])))
    assert caught.value.field.startswith("resumption.tokens")


async def test_least_tokens_and_candidates_count_from_the_beginning(rig: Rig) -> None:
    for blend in ("words", "contrast"):
        request = asked(
            blend,
            sampling=Sampling(seed=9, temperature=2.5),
            stopping=Stopping(max_tokens=40, min_tokens=30),
            output=Output(logprobs=True, num_top_candidates=3),
        )
        whole = await reply(rig, request)
        found = await rest(rig, request, whole, 17)
        assert same(found.tokens, whole.tokens[17:])
        assert len(whole.tokens) >= 30
        tops = [[c.id for c in token.token.top] for token in found.tokens]
        assert tops == [[c.id for c in token.token.top] for token in whole.tokens[17:]]


@pytest.mark.parametrize("blend", ["full", "full-adaptive"])
async def test_a_context_that_is_full_is_full_again(rig: Rig, blend: str) -> None:
    request = asked(blend, stopping=Stopping(max_tokens=60, ignore_eos=True))
    whole = await reply(rig, request)
    assert whole.outcome.finish_reason is FinishReason.CONTEXT_FULL
    for cut in (len(whole.tokens) - 2, len(whole.tokens)):
        found = await rest(rig, request, whole, cut)
        assert same(found.tokens, whole.tokens[cut:])
        check_same_end(found.outcome, whole.outcome)


async def test_a_fusers_reply_goes_on_after_the_same_proposals(rig: Rig) -> None:
    request = asked("team")
    whole = await reply(rig, request)
    found = await rest(rig, request, whole, 9)
    assert same(found.tokens, whole.tokens[9:])
    assert found.text == whole.text[len(whole.visible(9)) :]
    texts = [proposal.text for proposal in found.outcome.proposals]
    assert texts == [proposal.text for proposal in whole.outcome.proposals]


async def test_the_best_reply_is_written_again_and_what_is_known_left_out(rig: Rig) -> None:
    request = asked("likely")
    whole = await reply(rig, request)
    for cut in (0, 4, len(whole.tokens)):
        found = await rest(rig, request, whole, cut)
        assert found.tokens == whole.tokens[cut:]
        assert found.text == whole.text[len(whole.visible(cut)) :]
    tokens = (replace(whole.received[0], id=1), *whole.received[1:])
    with pytest.raises(InvalidRequest, match="the best reply"):
        await reply(rig, replace(request, resumption=Resumption(tokens)))


async def test_it_costs_each_member_one_prefill_of_prompt_and_reply(rig: Rig) -> None:
    request = asked("tokens", 4, stopping=Stopping(max_tokens=60, ignore_eos=True))
    whole = await reply(rig, request)
    found = await rest(rig, request, whole, 40)
    usages = found.outcome.usage
    assert len(usages) == 2
    # A token a pass: the first one that a member draws comes of its prefill.
    assert sum(usage.seat.forward_passes for usage in usages) == len(found.tokens) == 20
    assert sum(usage.drawn_tokens for usage in usages) == 20
    for usage in usages:
        last = max(t.position for t in found.tokens if t.member == usage.member)
        processed = usage.seat.processed_tokens + usage.seat.cached_tokens
        assert processed == usage.seat.prompt_tokens + last


async def test_weights_that_follow_the_reply_cost_one_pass_of_each_member(rig: Rig) -> None:
    request = asked("adaptive", 4, stopping=Stopping(max_tokens=60, ignore_eos=True))
    whole = await reply(rig, request)
    found = await rest(rig, request, whole, 40)
    passes = sum(usage.seat.forward_passes for usage in found.outcome.usage)
    assert passes <= len(found.tokens) + 2
    together = asked("product", 4, stopping=Stopping(max_tokens=60, ignore_eos=True))
    whole = await reply(rig, together)
    found = await rest(rig, together, whole, 40)
    assert [usage.seat.forward_passes for usage in found.outcome.usage] == [20, 20]


async def test_what_was_sent_stands_where_other_numbers_would_say_otherwise(rig: Rig) -> None:
    """As in lower precision: a token that these numbers do not draw, by a member they do not."""
    for blend in ("learning", "adaptive", "learned", "sure", "mean"):
        request = asked(blend, stopping=Stopping(max_tokens=NUM_TOKENS, ignore_eos=True))
        whole = await reply(rig, request)
        other = "kjv" if whole.tokens[6].member == "austen" else "austen"
        tokens = [*whole.received[:6], replace(whole.received[6], member=other, weights=())]
        tokens[4] = replace(tokens[4], id=whole.received[0].id, bytes=whole.received[0].bytes)
        found = await reply(rig, replace(request, resumption=Resumption(tuple(tokens))))
        assert [token.position for token in found.tokens] == list(range(7, NUM_TOKENS))


TOKEN = ReceivedToken("austen", 300, b"x")


@pytest.mark.parametrize(
    ("blend", "tokens", "field"),
    [
        ("tokens", (replace(TOKEN, member="nobody"),), "resumption.tokens[0].member"),
        ("tokens", (replace(TOKEN, member="bytes"),), "resumption.tokens[0].member"),
        ("tokens", (TOKEN,) * 9, "resumption.tokens[1].member"),
        ("replies", (replace(TOKEN, member="kjv"),), "resumption.tokens[0].member"),
        ("learned", (replace(TOKEN, weights=(("me", 1.0),)),), "resumption.tokens[0].weights"),
        ("replies", (TOKEN,) * (NUM_TOKENS + 1), f"resumption.tokens[{NUM_TOKENS}].id"),
        ("replies", (replace(TOKEN, id=1 << 31),), "resumption.tokens"),
        ("mean", (TOKEN,) * (NUM_TOKENS + 1), f"resumption.tokens[{NUM_TOKENS}].id"),
        ("mean", (replace(TOKEN, id=1 << 31),), "resumption.tokens[0].id"),
        ("mean", (replace(TOKEN, bytes=b"\xff\xff"),), "resumption.tokens[0].bytes"),
        ("letters", (replace(TOKEN, id=256, bytes=b""),), "resumption.tokens[0].id"),
        ("learning", (replace(TOKEN, id=1 << 31),), "resumption.tokens[0].id"),
    ],
)
async def test_tokens_that_no_such_reply_has_are_refused_by_name(
    rig: Rig, blend: str, tokens: tuple[ReceivedToken, ...], field: str
) -> None:
    if blend == "mean" and len(tokens) > 1:
        whole = await reply(rig, asked(blend, stopping=Stopping(max_tokens=50, ignore_eos=True)))
        tokens = whole.received[: len(tokens)]
    with pytest.raises(InvalidRequest) as caught:
        await reply(rig, asked(blend, 5, resumption=Resumption(tokens)))
    assert caught.value.field == field
    await at_rest(rig)


async def at_rest(rig: Rig) -> None:
    while rig.num_held() != (0, 0):
        await asyncio.sleep(0.001)


async def test_the_stop_string_the_seed_and_the_revision_are_minded(rig: Rig) -> None:
    whole = await reply(rig, asked("words"))
    stopping = Stopping(max_tokens=NUM_TOKENS, stop=(whole.text[:4],))
    with pytest.raises(InvalidRequest, match="stop string"):
        await rest(rig, asked("words", stopping=stopping), whole, 12)
    with pytest.raises(InvalidRequest) as caught:
        asked("words", sampling=Sampling(), resumption=Resumption(whole.received))
    assert (caught.value.reason, caught.value.field) == ("MISSING_SEED", "sampling.seed")
    with pytest.raises(Unsupported) as changed:
        await reply(rig, asked("words", resumption=Resumption(whole.received, "other")))
    assert changed.value.reason == "REVISION_CHANGED"
    assert changed.value.field == "resumption.blend_revision"
    found = await reply(rig, asked("words", resumption=Resumption(whole.received[:5])))
    assert same(found.tokens, whole.tokens[5:])


async def test_a_stream_begins_with_what_it_takes_to_go_on(rig: Rig) -> None:
    for blend in ("words", "mean", "likely", "team"):
        request = asked(blend, sampling=Sampling())
        updates = [update async for update in rig.router.generate(request)]
        start, outcome = updates[0].start, updates[-1].outcome
        assert start is not None
        assert outcome is not None
        assert not any(update.start for update in updates[1:])
        assert (start.seed, start.blend) == (outcome.seed, outcome.blend)
        assert start.revision == outcome.revision
