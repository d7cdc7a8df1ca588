"""`route` over the whole path, against plain transformers in float64."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import torch
from scipy.stats import chisquare
from transformers import AutoModelForCausalLM, AutoTokenizer

from cluster.blending.gates import Choice, Network
from cluster.errors import CuveeError, InvalidRequest, Unsupported
from cluster.gates.file import GateInputs, save_gate
from cluster.members.base import Prompt
from cluster.models.resolve import resolve
from cluster.rankers.base import RankRequest
from cluster.router.answers import Outcome, ReplyToken
from cluster.router.requests import GenerationRequest, Overrides, Sampling, ScoreRequest, Stopping
from cluster.spec import RouteSpec, parse_spec
from tests.rankers.checkpoints import make_ranker
from tests.rig import Rig, running

pytestmark = pytest.mark.asyncio(loop_scope="module")

FALSE_ALARM_RATE = 1e-6
NAMES = ("austen", "kjv", "bierce")
TINY = "dtype: float32, kv_memory: 32MiB"
THREE = "{austen: 1, kjv: 1, bierce: 1}"
SPEC = f"""
version: 1
members:
  austen: {{model: embedded:tiny-austen, {TINY}}}
  kjv: {{model: embedded:tiny-kjv, {TINY}}}
  bierce: {{model: embedded:tiny-bierce, {TINY}}}
  bytes: {{model: embedded:tiny-bytes, {TINY}}}
rankers:
  alike: {{model: FOLDER/encoder, kind: embedding, dtype: float32}}
  judge: {{model: FOLDER/reward, kind: reward, dtype: float32}}
blends:
  sure: {{method: route, members: {{austen: 1, kjv: 1}}, gate: {{by: confidence, first: austen}},
         threshold: 0.3}}
  calm: {{method: route, members: {{austen: 1, kjv: 1}}, gate: {{by: entropy, first: austen}},
         threshold: 3.0}}
  threes: {{method: route, span: 3, members: {{austen: 1, kjv: 1}}, threshold: 0.3,
           gate: {{by: confidence, first: austen}}}}
  words: {{method: route, span: word, members: {{austen: 1, bytes: 1}}, threshold: 0.2,
          gate: {{by: confidence, first: austen}}}}
  keys: {{method: route, members: {THREE}, gate: {{by: keywords, otherwise: austen,
         rules: [{{match: '(?i)came to pass', member: kjv}}, {{match: devil, member: bierce}}]}}}}
  near: {{method: route, members: {THREE}, top: 2, gate: {{by: examples, ranker: alike,
         examples: {{kjv: [In the beginning, And God said], bierce: ["DEVIL, n."]}}}}}}
  learned: {{method: route, members: {THREE}, top: 2, costs: {{kjv: 1}},
            gate: {{by: learned, file: FOLDER/state.gate, reader: kjv}}}}
  whole: {{method: route, members: {THREE}, span: response,
          gate: {{by: learned, file: FOLDER/state.gate, reader: kjv}}}}
  asked: {{method: route, members: {THREE}, top: 3,
          gate: {{by: learned, file: FOLDER/prompt.gate, ranker: alike}}}}
  strange: {{method: route, members: {{kjv: 1, austen: 1, bierce: 1}},
            gate: {{by: learned, file: FOLDER/state.gate, reader: kjv}}}}
  missing: {{method: route, members: {THREE}, gate: {{by: learned, file: none.gate, reader: kjv}}}}
  alone: {{method: mixture, members: {{austen: 1, kjv: 1, bierce: 1, bytes: 1}}}}
limits: {{max_new_tokens: 400, lease_timeout_s: 2}}
"""
TEXT = "And it came to pass"


def network(num_features: int, seed: int, scale: float) -> Network:
    rng = np.random.default_rng(seed)
    shapes = ((8, num_features), (3, 8))
    layers = [(rng.normal(size=s) * scale, rng.normal(size=s[0])) for s in shapes]
    return Network([(w.astype(np.float32), b.astype(np.float32)) for w, b in layers])


STATE_GATE, PROMPT_GATE = network(128, 2, 0.2), network(32, 1, 2.0)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rig(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Rig]:
    folder = tmp_path_factory.mktemp("route")
    make_ranker(folder / "encoder", num_labels=None)
    make_ranker(folder / "reward")
    text = SPEC.replace("FOLDER", str(folder)).replace("none.gate", f"{folder}/none.gate")
    spec = parse_spec(text)
    for blend, gate in (("learned", STATE_GATE), ("asked", PROMPT_GATE)):
        route = spec.blends[blend]
        assert isinstance(route, RouteSpec)
        save_gate(Path(route.gate.file), gate, GateInputs.of(spec, route))  # type: ignore[union-attr]
    async with running(text, num_replicas=2) as rig:
        yield rig


@cache
def model(name: str) -> Any:
    folder = resolve(f"embedded:tiny-{name}", download=False)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()


@cache
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(resolve("embedded:tiny-austen", download=False))


@cache
def law(name: str, ids: tuple[int, ...]) -> np.ndarray:
    with torch.inference_mode():
        logits = model(name)(torch.tensor([ids])).logits[0, -1]
    return logits.softmax(dim=-1).numpy()


@cache
def state(name: str, ids: tuple[int, ...]) -> np.ndarray:
    with torch.inference_mode():
        output = model(name)(torch.tensor([ids]), output_hidden_states=True)
    return output.hidden_states[-1][0, -1].numpy()


def in_doubt(p: np.ndarray, blend: str) -> bool:
    if blend == "calm":
        return float(-(p * np.log(p)).sum()) > 3.0
    return float(p.max()) < 0.3


async def generate(
    rig: Rig, blend: str, seed: int, prompt: str = TEXT, max_tokens: int = 16, **more: Any
) -> tuple[str, list[ReplyToken], Outcome]:
    request = GenerationRequest(
        blend=blend,
        prompt=Prompt(text=prompt),
        sampling=Sampling(seed=seed, temperature=more.pop("temperature", None)),
        stopping=Stopping(max_tokens=max_tokens, ignore_eos=True),
        overrides=Overrides(**more),
    )
    text, tokens = "", []
    async with aclosing(rig.router.generate(request)) as updates:
        async for update in updates:
            text += update.text
            tokens += update.tokens
            outcome = update.outcome
    assert outcome is not None
    return text, tokens, outcome


@pytest.mark.parametrize("blend", ["sure", "calm"])
async def test_who_is_not_sure_hands_over_every_token(rig: Rig, blend: str) -> None:
    begin = tuple(tokenizer()(TEXT).input_ids)
    speakers: Counter[str] = Counter()
    for _, tokens, _ in await asyncio.gather(
        *(generate(rig, blend, seed, max_tokens=30) for seed in range(4))
    ):
        ids = begin
        for token in tokens:
            expected = "kjv" if in_doubt(law("austen", ids), blend) else "austen"
            assert token.member == expected
            assert token.token.logprob == pytest.approx(
                float(np.log(law(expected, ids)[token.token.id])), abs=1e-4
            )
            speakers[expected] += 1
            ids = (*ids, token.token.id)
    assert min(speakers.values()) > 20, "both had the word"


async def test_a_greedy_cascade_is_its_definition(rig: Rig) -> None:
    ids = tuple(tokenizer()(TEXT).input_ids)
    _, tokens, _ = await generate(rig, "sure", 0, max_tokens=24, temperature=0.0)
    for token in tokens:
        speaker = "kjv" if in_doubt(law("austen", ids), "sure") else "austen"
        assert token.token.id == int(law(speaker, ids).argmax())
        ids = (*ids, token.token.id)


async def test_the_law_of_a_cascade(rig: Rig) -> None:
    """Two tokens of many replies against the float64 law; wrong alarms at FALSE_ALARM_RATE."""
    begin, num_replies = tuple(tokenizer()(TEXT).input_ids), 1000
    first = law("kjv" if in_doubt(law("austen", begin), "sure") else "austen", begin)
    pairs: Counter[tuple[int, int]] = Counter()
    for start in range(0, num_replies, 50):
        replies = await asyncio.gather(
            *(generate(rig, "sure", seed, max_tokens=2) for seed in range(start, start + 50))
        )
        pairs.update((t[0].token.id, t[1].token.id) for _, t, _ in replies)
    expected: dict[tuple[int, int], float] = {}
    for one in np.argsort(-first)[:12].tolist():
        ids = (*begin, one)
        p = law("austen", ids)
        second = law("kjv", ids) if in_doubt(p, "sure") else p
        for two in np.argsort(-second)[:12].tolist():
            expected[one, two] = float(first[one] * second[two])
    kept = {pair: p for pair, p in expected.items() if p * num_replies >= 5}
    rest = 1 - sum(kept.values())
    observed = [pairs[pair] for pair in kept]
    observed.append(num_replies - sum(observed))
    result = chisquare(observed, [*(p * num_replies for p in kept.values()), rest * num_replies])
    assert len(kept) > 10
    assert result.pvalue > FALSE_ALARM_RATE


async def test_spans_of_tokens_are_gated_at_their_first(rig: Rig) -> None:
    begin = tuple(tokenizer()(TEXT).input_ids)
    for seed in range(4):
        _, tokens, _ = await generate(rig, "threes", seed, max_tokens=30)
        ids = begin
        for place, token in enumerate(tokens):
            if place % 3 == 0:
                speaker = "kjv" if in_doubt(law("austen", ids), "threes") else "austen"
            assert token.member == speaker
            ids = (*ids, token.token.id)


async def test_words_are_gated_across_tokenizers(rig: Rig) -> None:
    for seed in range(4):
        text, tokens, _ = await generate(rig, "words", seed, max_tokens=60)
        assert {token.member for token in tokens} == {"austen", "bytes"}
        assert b"".join(token.token.bytes for token in tokens).decode(errors="replace") == text


async def test_a_cascade_costs_the_other_its_own_tokens_only(rig: Rig) -> None:
    """The other catches up and draws in one pass, and takes none that it does not speak in."""
    _, tokens, outcome = await generate(rig, "sure", 3, max_tokens=40)
    by = Counter(token.member for token in tokens)
    passes = {usage.member: usage.seat.forward_passes for usage in outcome.usage}
    assert by["kjv"] > 3
    assert passes["kjv"] == by["kjv"] + 1, "and one for the prompt, ahead of need"
    assert passes["austen"] == by["austen"] + by["kjv"], "it looks at every token"
    steps = {usage.member: usage.seat.steps for usage in outcome.usage}
    assert steps["kjv"] == by["kjv"]
    assert steps["austen"] <= by["kjv"] + 1, "one for all that it says until it is not sure"


async def test_a_learned_gate_weighs_what_its_reader_makes_of_it(rig: Rig) -> None:
    """Each token by one of the top two, in law by the gate's weights there."""
    begin, surprise = tuple(tokenizer()(TEXT).input_ids), 0.0
    spread = 0.0
    speakers: Counter[str] = Counter()
    for _, tokens, outcome in await asyncio.gather(
        *(generate(rig, "learned", seed, max_tokens=14) for seed in range(20))
    ):
        ids = begin
        for token in tokens:
            logits = STATE_GATE.logits(state("kjv", ids))
            weights = dict(zip(NAMES, Choice([1 / 3] * 3, 2, [0] * 3).weights(logits), strict=True))
            assert weights[token.member] > 0
            assert dict(token.weights) == pytest.approx(weights, abs=1e-3)
            speakers[token.member] += 1
            share = weights["austen"]
            surprise += (token.member == "austen") - share
            spread += share * (1 - share)
            ids = (*ids, token.token.id)
        assert outcome.weights == pytest.approx(weights, abs=1e-4)
    assert spread > 20, "the gate was undecided often enough to tell"
    assert abs(surprise) / spread**0.5 < 4.9, "two-sided, FALSE_ALARM_RATE"
    assert len(speakers) == 3


async def test_a_gate_costs_its_reader_one_look_per_token(rig: Rig) -> None:
    """Who is read and speaks draws from what was read: no second pass."""
    _, tokens, outcome = await generate(rig, "learned", 1, max_tokens=30)
    by = Counter(token.member for token in tokens)
    passes = {usage.member: usage.seat.forward_passes for usage in outcome.usage}
    assert by["kjv"] > 2
    assert passes["kjv"] == len(tokens), "one per decision, none for drawing"
    for name in ("austen", "bierce"):
        assert passes[name] == by[name] + 1, "its tokens, and the prompt ahead of need"


async def test_a_gate_for_whole_replies_leases_who_it_reads_and_who_speaks(rig: Rig) -> None:
    logits = STATE_GATE.logits(state("kjv", tuple(tokenizer()(TEXT).input_ids)))
    expected = NAMES[int(np.argmax(logits))]
    text, tokens, outcome = await generate(rig, "whole", 4)
    assert {token.member for token in tokens} == {expected}
    assert outcome.weights == {name: float(name == expected) for name in NAMES}
    assert {usage.member for usage in outcome.usage} == {"kjv", expected}
    assert text == (await generate(rig, "alone", 4, member=expected))[0]


async def test_keywords_decide_from_the_prompt(rig: Rig) -> None:
    for prompt, member in ((TEXT, "kjv"), ("the devil", "bierce"), ("My dear", "austen")):
        _, tokens, outcome = await generate(rig, "keys", 1, prompt)
        assert {token.member for token in tokens} == {member}
        assert [usage.member for usage in outcome.usage] == [member], "nobody else is leased"
        assert outcome.weights == {name: float(name == member) for name in NAMES}


async def test_examples_and_learned_gates_weigh_the_prompt(rig: Rig) -> None:
    async def vector(text: str) -> np.ndarray:
        request = RankRequest(Prompt(text=""), (text,))
        return (await rig.rankers["alike"].measure(request))[0].astype(np.float64)

    prompt = await vector(TEXT)
    near = max([prompt @ await vector(e) for e in ("In the beginning", "And God said")])
    logits = [-np.inf, 20 * near, 20 * float(prompt @ await vector("DEVIL, n."))]
    weights = Choice([1 / 3] * 3, 2, [0] * 3).weights(logits)
    _, _, outcome = await generate(rig, "near", 2)
    assert outcome.weights == pytest.approx(dict(zip(NAMES, weights, strict=True)), abs=1e-4)
    weights = Choice([1 / 3] * 3, 3, [0] * 3).weights(PROMPT_GATE.logits(prompt))
    _, tokens, outcome = await generate(rig, "asked", 2, max_tokens=30)
    assert outcome.weights == pytest.approx(dict(zip(NAMES, weights, strict=True)), abs=1e-4)
    given = {n: w for n, w in outcome.weights.items() if w > 0}
    again = await generate(rig, "alone", 2, max_tokens=30, weights=given)
    assert [t.token.id for t in tokens] == [t.token.id for t in again[1]], "a mixture by these"


async def test_scores_have_the_law_that_is_drawn_from(rig: Rig) -> None:
    begin = tuple(tokenizer()(TEXT).input_ids)
    text = " in those days, that the king"
    ids = tuple(tokenizer()(text).input_ids)

    def along(weigh: Callable[[tuple[int, ...]], dict[str, float]]) -> list[float]:
        found = []
        for place, token in enumerate(ids):
            before = begin + ids[:place]
            weights = weigh(before)
            found.append(np.log(sum(w * law(n, before)[token] for n, w in weights.items() if w)))
        return found

    def cascade(blend: str) -> Callable[[tuple[int, ...]], dict[str, float]]:
        return lambda ids: {"kjv" if in_doubt(law("austen", ids), blend) else "austen": 1.0}

    def learned(ids: tuple[int, ...]) -> dict[str, float]:
        logits = STATE_GATE.logits(state("kjv", ids))
        return dict(zip(NAMES, Choice([1 / 3] * 3, 2, [0] * 3).weights(logits), strict=True))

    _, _, outcome = await generate(rig, "asked", 2)
    decided = dict(outcome.weights)
    for blend, weigh in (
        ("sure", cascade("sure")),
        ("calm", cascade("calm")),
        ("learned", learned),
        ("keys", lambda ids: {"kjv": 1.0}),
        ("asked", lambda ids: decided),
    ):
        score = await rig.router.score(ScoreRequest(blend, Prompt(text=TEXT), text))
        expected = along(weigh)
        if score.mixture:
            found = [token.logprob for token in score.mixture]
            np.testing.assert_allclose(found, expected, atol=1e-4)
        assert score.logprob == pytest.approx(sum(expected), abs=1e-3)
    score = await rig.router.score(ScoreRequest("whole", Prompt(text=TEXT), text))
    logits = STATE_GATE.logits(state("kjv", begin))
    best = NAMES[int(np.argmax(logits))]
    assert score.logprob == pytest.approx(sum(along(lambda ids: {best: 1.0})), abs=1e-3)
    score = await rig.router.score(ScoreRequest("threes", Prompt(text=TEXT), text))
    assert score.logprob is None, "where spans of three begin, a text does not say"


async def test_texts_scored_at_once_in_chunks_score_as_they_do_alone(rig: Rig) -> None:
    texts = [f" {i} in those days, that the king of the land said" * 6 for i in range(8)]
    requests = [ScoreRequest("learned", Prompt(text=f"{i} {TEXT}"), texts[i]) for i in range(8)]
    together = await asyncio.gather(*map(rig.router.score, requests))
    alone = [await rig.router.score(request) for request in requests]
    assert [s.logprob for s in together] == pytest.approx([s.logprob for s in alone], abs=1e-3)


async def test_prices_make_the_cheaper_member_speak(rig: Rig) -> None:
    _, tokens, _ = await generate(rig, "learned", 1, max_tokens=30)
    assert any(token.member == "kjv" for token in tokens)
    _, tokens, _ = await generate(rig, "learned", 1, max_tokens=30, parameters={"price": 1000.0})
    assert not any(token.member == "kjv" for token in tokens), "it alone costs something"


async def test_thresholds_and_pins_per_request(rig: Rig) -> None:
    _, tokens, _ = await generate(rig, "sure", 1, parameters={"threshold": 0.0})
    assert {token.member for token in tokens} == {"austen"}
    _, tokens, _ = await generate(rig, "sure", 1, parameters={"threshold": 1.0})
    assert {token.member for token in tokens} == {"kjv"}
    text, _, _ = await generate(rig, "sure", 1, member="kjv")
    assert text == (await generate(rig, "alone", 1, member="kjv"))[0]


@pytest.mark.parametrize("blend", ["sure", "threes", "learned"])
async def test_a_lost_replica_changes_nothing(rig: Rig, blend: str) -> None:
    whole, _, _ = await generate(rig, blend, 9, max_tokens=40)
    request = GenerationRequest(
        blend=blend,
        prompt=Prompt(text=TEXT),
        sampling=Sampling(seed=9),
        stopping=Stopping(max_tokens=40, ignore_eos=True),
    )
    text, num_lost = "", 0
    async with aclosing(rig.router.generate(request)) as updates:
        async for update in updates:
            text += update.text
            if len(text) > 20 * (num_lost + 1) and num_lost < 3:
                num_lost += 1
                for server in rig.all_servers:
                    for lease in list(server.leases._live.values()):
                        server.leases.end(lease)
    assert num_lost == 3
    assert text == whole


@pytest.mark.parametrize(
    ("blend", "overrides", "error", "field", "words"),
    [
        ("strange", {}, Unsupported, "gate.file", "trained for members austen"),
        ("missing", {}, Unsupported, "gate.file", "`cuvee gate train` makes one"),
        ("learned", {"parameters": {"top": 4.0}}, InvalidRequest, "overrides.parameters[top]", "4"),
        ("keys", {"parameters": {"top": 2.0}}, InvalidRequest, "overrides.parameters[top]", "2"),
        (
            "keys",
            {"parameters": {"threshold": 0.5}},
            InvalidRequest,
            "overrides.parameters[threshold]",
            "got 0.5",
        ),
        (
            "sure",
            {"parameters": {"threshold": 2.0}},
            InvalidRequest,
            "overrides.parameters[threshold]",
            "got 2",
        ),
        ("sure", {"weights": {"austen": 1.0}}, InvalidRequest, "overrides.weights", "hand over"),
    ],
)
async def test_bad_input(
    rig: Rig,
    blend: str,
    overrides: dict[str, Any],
    error: type[CuveeError],
    field: str,
    words: str,
) -> None:
    with pytest.raises(error, match=words) as caught:
        await generate(rig, blend, 1, **overrides)
    assert caught.value.field == field
    assert rig.num_held() == (0, 0)


async def test_a_file_that_is_no_gate(rig: Rig, tmp_path: Path) -> None:
    (tmp_path / "x.gate").write_bytes(b"nothing of the kind")
    text = f"""
version: 1
members: {{austen: {{model: embedded:tiny-austen, {TINY}}}}}
blends:
  x: {{method: route, members: {{austen: 1}}, gate: {{by: learned, reader: austen,
      file: {tmp_path}/x.gate}}}}
"""
    async with running(text) as other:
        assert other.router.ready_blends == []
        with pytest.raises(Unsupported, match="is no gate"):
            other.router.blend("x")
