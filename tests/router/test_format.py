"""Replies that have to match: their law against transformers, over the whole path.

Seeds are fixed, so a test passes or fails for good; over seeds, each true comparison of laws would
fail with probability FALSE_ALARM_RATE.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from functools import cache
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import torch
from jsonschema import Draft202012Validator
from scipy.stats import chisquare
from transformers import AutoModelForCausalLM, AutoTokenizer

from cluster.errors import InvalidRequest, Unsupported
from cluster.members.base import Prompt
from cluster.models.resolve import resolve
from cluster.router.answers import FinishReason, Outcome, ReplyToken
from cluster.router.requests import GenerationRequest, Output, Overrides, Sampling, Stopping
from cluster.text.grammar import OutputFormat
from cluster.text.member import MemberText
from tests.reference import warp
from tests.rig import Rig, running

pytestmark = pytest.mark.asyncio(loop_scope="module")

FALSE_ALARM_RATE = 1e-6
NUM_DRAWS = 400
MIN_EXPECTED = 5.0
PROMPT = "It was the"
TINY = "dtype: float32, kv_memory: 32MiB"
SPEC = f"""
version: 1
members:
  base: {{model: embedded:tiny-base, {TINY}}}
  austen: {{model: embedded:tiny-austen, {TINY}}}
  kjv: {{model: embedded:tiny-kjv, {TINY}}}
  bytes: {{model: embedded:tiny-bytes, {TINY}}}
blends:
  tokens: {{method: mixture, span: token, members: {{austen: 0.35, kjv: 0.65}}}}
  threes: {{method: mixture, span: 3, members: {{austen: 0.35, kjv: 0.65}}}}
  words: {{method: mixture, span: word, members: {{austen: 0.35, kjv: 0.65}}}}
  replies: {{method: mixture, span: response, members: {{austen: 0.35, kjv: 0.65}}}}
  adaptive: {{method: mixture, adapt: {{strength: 1}}, members: {{austen: 0.35, kjv: 0.65}}}}
  mean: {{method: ensemble, exact: true, members: {{austen: 0.35, kjv: 0.65}}}}
  few: {{method: ensemble, candidates: 4, members: {{austen: 0.35, kjv: 0.65}}}}
  product: {{method: ensemble, rule: product, exact: true, members: {{austen: 0.35, kjv: 0.65}}}}
  proxy: {{method: proxy, alpha: 0.8, members: {{base: base, austen: expert, kjv: anti}}}}
  contrast: {{method: contrast, beta: 0.5, members: {{austen: expert, base: amateur}}}}
  learning: {{method: ensemble, exact: true, adapt: {{}}, members: {{austen: 1, kjv: 1}}}}
  unlike: {{method: mixture, members: {{austen: 1, bytes: 1}}}}
  turns: {{method: mixture, span: response, members: {{austen: 1, bytes: 1}}}}
  likeliest: {{method: choose, rank: likelihood, members: {{austen: 1, bytes: 1}}}}
  fused: {{method: fuse, members: {{austen: proposer, bytes: proposer, kjv: fuser}}}}
limits: {{max_new_tokens: 400}}
"""
TURNS = ("tokens", "threes", "words", "replies", "adaptive")
TOGETHER = ("mean", "few", "product", "proxy", "contrast")
ANSWERS = ("best", "beast", "worst", "good")
REGEX = OutputFormat("regex", f" ({'|'.join(ANSWERS)})")
SCHEMAS: dict[str, dict[str, Any]] = {
    "person": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 12},
            "age": {"type": "integer", "minimum": 0, "maximum": 130},
            "alive": {"type": "boolean"},
        },
        "required": ["name", "age"],
        "additionalProperties": False,
    },
    "list": {
        "type": "array",
        "items": {"enum": ["good", "bad", 7, None, "ég\n"]},
        "minItems": 2,
        "maxItems": 4,
    },
    "union": {"anyOf": [{"const": "x"}, {"type": "number", "minimum": 1.5, "maximum": 2.5}]},
    "nested": {
        "$defs": {
            "tree": {
                "type": "object",
                "properties": {
                    "n": {"type": "integer", "minimum": 0, "maximum": 9},
                    "of": {"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": 1},
                },
                "required": ["n"],
                "additionalProperties": False,
            }
        },
        "$ref": "#/$defs/tree",
    },
    "pattern": {"type": "string", "pattern": "^[a-c]{2,5}-\\d{3}$"},
}
EXPRESSIONS = (
    r"[A-Z][a-z]{1,8}( [a-z]{1,8}){2,5}\.",
    r"(\d{3}-){2}\d{4}",
    "(Ünïcödé|naïve|你好，世界|日本語|👩‍👩‍👧|Привет)+( is (été|ça)){0,2}",
    r"- [^\n]{1,20}(\n- [^\n]{1,20}){0,2}",
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rig() -> AsyncIterator[Rig]:
    async with running(SPEC) as rig:
        yield rig


async def reply(
    rig: Rig,
    blend: str,
    wanted: OutputFormat | None,
    *,
    seed: int = 1,
    max_tokens: int = 300,
    temperature: float | None = None,
    top_p: float | None = None,
    **fields: Any,
) -> tuple[str, list[ReplyToken], Outcome]:
    request = GenerationRequest(
        blend,
        Prompt(text=PROMPT),
        Sampling(seed=seed, temperature=temperature, top_p=top_p),
        fields.pop("stopping", Stopping(max_tokens=max_tokens)),
        format=wanted,
        **fields,
    )
    updates = [update async for update in rig.router.generate(request)]
    outcome = updates[-1].outcome
    assert outcome is not None
    text = "".join(update.text for update in updates)
    return text, [token for update in updates for token in update.tokens], outcome


# -- the law ------------------------------------------------------------------------------------


@cache
def plain(name: str) -> tuple[torch.nn.Module, list[int], MemberText]:
    folder = resolve(f"embedded:tiny-{name}", download=False)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, tokenizer(PROMPT).input_ids, MemberText(tokenizer)


def going_on(said: bytes) -> list[int]:
    """The ids that may follow, by comparing bytes."""
    text = plain("base")[2]
    wholes = [f" {answer}".encode() for answer in ANSWERS]
    ids = [
        i
        for i, data in enumerate(text.token_bytes)
        if data and any(whole.startswith(said + data) for whole in wholes)
    ]
    return ids + (list(text.end_ids) if said in wholes else [])


@cache
def logprobs(name: str, ids: tuple[int, ...]) -> np.ndarray:
    model, prompt, _ = plain(name)
    with torch.inference_mode():
        logits = model(torch.tensor([[*prompt, *ids]])).logits[0, -1]
    return torch.log_softmax(logits.double(), -1).numpy()


def next_law(blend: str, ids: tuple[int, ...], temperature: float, top_p: float) -> np.ndarray:
    """What the blend draws from: each member's law given that the text goes on, combined."""
    said = b"".join(plain("base")[2].token_bytes[i] for i in ids)
    may = np.full(len(logprobs("base", ids)), -np.inf)
    may[going_on(said)] = 0.0

    def of(name: str) -> np.ndarray:
        masked = logprobs(name, ids) + may
        return masked - np.logaddexp.reduce(masked[np.isfinite(masked)])

    if blend in ("tokens", "mean"):
        shares = {"austen": 0.35, "kjv": 0.65}
        return np.sum([w * warp(of(n), temperature, top_p) for n, w in shares.items()], axis=0)
    if blend == "product":
        combined = 0.35 * of("austen") + 0.65 * of("kjv")
    elif blend == "proxy":
        with np.errstate(invalid="ignore"):
            combined = of("base") + 0.8 * (of("austen") - of("kjv"))
        combined = np.where(np.isfinite(may), combined, -np.inf)
    else:
        expert = of("austen")
        plausible = expert >= expert.max() + np.log(0.1)
        with np.errstate(invalid="ignore"):
            combined = np.where(plausible, expert - 0.5 * of("base"), -np.inf)
    return warp(combined, temperature, top_p)


def law_of_replies(blend: str, temperature: float, top_p: float) -> dict[str, float]:
    """Every reply's probability, over all its spellings."""
    spelled, ends = plain("base")[2].token_bytes, plain("base")[2].end_ids
    law: Counter[str] = Counter()
    open_ends: list[tuple[tuple[int, ...], float]] = [((), 1.0)]
    while open_ends:
        ids, chance = open_ends.pop()
        p = next_law(blend, ids, temperature, top_p)
        for i in np.flatnonzero(p).tolist():
            if i in ends:
                law[b"".join(spelled[j] for j in ids).decode()] += chance * float(p[i])
            elif chance * p[i] > 1e-7:
                open_ends.append(((*ids, i), chance * float(p[i])))
    return dict(law)


def p_value(drawn: list[str], law: Mapping[str, float]) -> float:
    counts = Counter(drawn)
    assert counts.keys() <= law.keys(), "drew what the law excludes"
    cells = [outcome for outcome, p in law.items() if p * len(drawn) >= MIN_EXPECTED]
    observed = [float(counts[outcome]) for outcome in cells]
    wanted = [law[outcome] * len(drawn) for outcome in cells]
    if (rest := len(drawn) - sum(wanted)) >= MIN_EXPECTED:
        observed.append(len(drawn) - sum(observed))
        wanted.append(rest)
    scale = sum(observed) / sum(wanted)
    return float(chisquare(observed, [w * scale for w in wanted]).pvalue)


async def drawn(rig: Rig, blend: str, temperature: float, top_p: float) -> list[str]:
    room = asyncio.Semaphore(32)

    async def one(seed: int) -> str:
        async with room:
            text, _, outcome = await reply(
                rig, blend, REGEX, seed=seed, temperature=temperature, top_p=top_p
            )
        assert outcome.finish_reason is FinishReason.END_OF_TURN
        return text

    return await asyncio.gather(*(one(seed) for seed in range(NUM_DRAWS)))


@pytest.mark.parametrize(
    ("blend", "temperature", "top_p"), [("tokens", 0.8, 0.9), ("mean", 1.0, 1.0)]
)
async def test_mixture_and_mean_have_the_law_of_members_masked_one_by_one(
    rig: Rig, blend: str, temperature: float, top_p: float
) -> None:
    law = law_of_replies("tokens", temperature, top_p)
    assert sum(law.values()) == pytest.approx(1, abs=1e-4)
    texts = await drawn(rig, blend, temperature, top_p)
    assert p_value(texts, law) > FALSE_ALARM_RATE
    assert len(set(texts)) >= 3

    swapped = {text: law[other] for text, other in zip(law, [*law][1:] + [*law][:1], strict=True)}
    assert p_value(texts, swapped) < FALSE_ALARM_RATE


@pytest.mark.parametrize("blend", ["mean", "product", "proxy", "contrast"])
async def test_each_token_by_all_has_the_law_of_masked_members(rig: Rig, blend: str) -> None:
    for seed in range(4):
        _, tokens, _ = await reply(
            rig, blend, REGEX, seed=seed, temperature=0.9, top_p=0.95, output=Output(True, 20)
        )
        ids: tuple[int, ...] = ()
        for token in tokens:
            law = next_law(blend, ids, 0.9, 0.95)
            assert np.exp(token.token.logprob) == pytest.approx(law[token.token.id], abs=1e-4)
            found = {c.id: np.exp(c.logprob) for c in token.token.top}
            assert found == pytest.approx({i: law[i] for i in found}, abs=1e-4), (
                "a candidate that the law excludes"
            )
            assert len(found) == min(20, int((law > 0).sum()))
            ids += (token.token.id,)


async def test_a_drawn_tokens_logprob_stays_the_models_own(rig: Rig) -> None:
    _, tokens, _ = await reply(rig, "tokens", REGEX, output=Output(logprobs=True))
    ids: tuple[int, ...] = ()
    for token in tokens:
        own = logprobs(token.member, ids)[token.token.id]
        assert token.token.logprob == pytest.approx(own, abs=1e-4)
        ids += (token.token.id,)


# -- every reply matches ------------------------------------------------------------------------


@pytest.mark.parametrize("blend", TURNS + TOGETHER)
@pytest.mark.parametrize("name", SCHEMAS)
async def test_replies_are_json_of_their_schema(rig: Rig, blend: str, name: str) -> None:
    wanted = OutputFormat("json_schema", json.dumps(SCHEMAS[name]))
    replies = await asyncio.gather(*(reply(rig, blend, wanted, seed=seed) for seed in range(3)))
    validator = Draft202012Validator(SCHEMAS[name])
    for text, _, outcome in replies:
        assert outcome.finish_reason is FinishReason.END_OF_TURN
        validator.validate(json.loads(text))


@pytest.mark.parametrize("blend", TURNS + TOGETHER)
@pytest.mark.parametrize("expression", EXPRESSIONS)
async def test_replies_match_their_expression(rig: Rig, blend: str, expression: str) -> None:
    wanted = OutputFormat("regex", expression)
    replies = await asyncio.gather(
        *(reply(rig, blend, wanted, seed=seed, temperature=1.2) for seed in range(3))
    )
    for text, tokens, outcome in replies:
        assert outcome.finish_reason is FinishReason.END_OF_TURN
        assert re.fullmatch(expression, text), text
        assert b"".join(token.token.bytes for token in tokens).decode() == text
    assert len({text for text, _, _ in replies}) > 1


async def test_greedy_replies_match(rig: Rig) -> None:
    for blend in TURNS + TOGETHER:
        text, _, _ = await reply(rig, blend, REGEX, temperature=0.0)
        assert text.removeprefix(" ") in ANSWERS


async def test_members_speak_by_turns_within_one_format(rig: Rig) -> None:
    wanted = OutputFormat("json_schema", json.dumps(SCHEMAS["person"]))
    for blend in ("tokens", "threes", "words", "adaptive"):
        _, tokens, _ = await reply(rig, blend, wanted, seed=2)
        assert {token.member for token in tokens} == {"austen", "kjv"}


async def test_members_of_unlike_vocabularies_may_reply_by_turns(rig: Rig) -> None:
    replies = [await reply(rig, "turns", REGEX, seed=seed) for seed in range(8)]
    assert {tokens[0].member for _, tokens, _ in replies} == {"austen", "bytes"}
    assert all(text.removeprefix(" ") in ANSWERS for text, _, _ in replies)
    text, tokens, _ = await reply(rig, "unlike", REGEX, overrides=Overrides(member="bytes"))
    assert text.removeprefix(" ") in ANSWERS
    assert {token.member for token in tokens} == {"bytes"}


@pytest.mark.parametrize("blend", ["likeliest", "fused"])
async def test_all_replies_match_where_one_answer_is_made_of_several(rig: Rig, blend: str) -> None:
    text, _, outcome = await reply(rig, blend, REGEX)
    written = [proposal.text for proposal in outcome.proposals]
    assert len(written) >= 2
    assert {said.removeprefix(" ") for said in [text, *written]} <= set(ANSWERS)


async def test_a_reply_that_max_tokens_cut_says_so(rig: Rig) -> None:
    for blend in ("tokens", "mean"):
        text, tokens, outcome = await reply(
            rig, blend, OutputFormat("regex", "a{50}"), max_tokens=7
        )
        assert outcome.finish_reason is FinishReason.MAX_TOKENS
        assert len(tokens) == 7
        assert set(text) == {"a"}


# -- neighbours, costs, losses ------------------------------------------------------------------


async def test_replies_without_a_format_do_not_change_beside_some_with_one(rig: Rig) -> None:
    alone = [await reply(rig, blend, None, max_tokens=30) for blend in ("tokens", "mean", "proxy")]
    formats = [REGEX, OutputFormat("json_schema", json.dumps(SCHEMAS["nested"]))] * 4
    together = await asyncio.gather(
        *(reply(rig, blend, None, max_tokens=30) for blend in ("tokens", "mean", "proxy")),
        *(reply(rig, "tokens", wanted, seed=n) for n, wanted in enumerate(formats)),
        *(reply(rig, "mean", wanted, seed=n) for n, wanted in enumerate(formats)),
    )
    assert [text for text, _, _ in together[:3]] == [text for text, _, _ in alone]


async def test_a_format_takes_no_forward_pass_more(rig: Rig) -> None:
    wanted = OutputFormat("regex", "[a-z ,;.]{200}")
    for blend in ("replies", "tokens", "mean", "contrast"):
        counts = []
        for format_ in (wanted, None):
            stopping = Stopping(24, ignore_eos=format_ is None)
            _, tokens, outcome = await reply(rig, blend, format_, stopping=stopping)
            assert len(tokens) == 24
            counts.append([usage.seat.forward_passes for usage in outcome.usage])
        if blend == "tokens":  # runs end alike, since speakers are drawn from the seed
            assert counts[0] == counts[1]
        assert sum(counts[0]) == sum(counts[1])


@pytest.mark.parametrize("blend", ["tokens", "words", "replies", "mean", "contrast"])
async def test_a_lost_replica_goes_on_in_the_middle_of_the_format(blend: str) -> None:
    wanted = OutputFormat(
        "json_schema",
        json.dumps(
            {
                "type": "array",
                "items": {"type": "string", "maxLength": 9},
                "minItems": 6,
                "maxItems": 7,
            }
        ),
    )
    async with running(SPEC, num_replicas=2) as rig:
        undisturbed, _, _ = await reply(rig, blend, wanted)
        request = GenerationRequest(
            blend, Prompt(text=PROMPT), Sampling(seed=1), Stopping(300), format=wanted
        )
        text, lost = "", None
        async for update in rig.router.generate(request):
            text += update.text
            if lost is None and len(text) > len(undisturbed) // 3:
                lost = next(s for s in rig.all_servers if s.replica.num_sequences)
                for member in rig.members.values():
                    if lost in member.servers:
                        member.servers.remove(lost)
                await lost.stop()
            outcome = update.outcome
    assert text == undisturbed
    assert outcome is not None
    assert sum(usage.leases for usage in outcome.usage) == len(outcome.usage) + 1
    assert len(json.loads(text)) >= 6


# -- what is refused ----------------------------------------------------------------------------

BAD_STOPPING = [
    (Stopping(min_tokens=1), "min_tokens"),
    (Stopping(ignore_eos=True), "ignore_eos"),
    (Stopping(stop=("x",)), "stop"),
]


@pytest.mark.parametrize(("stopping", "field"), BAD_STOPPING)
async def test_another_say_in_where_it_ends_is_refused(
    rig: Rig, stopping: Stopping, field: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await reply(rig, "tokens", REGEX, stopping=stopping)
    assert (caught.value.reason, caught.value.field) == (
        "CONFLICTING_OPTIONS",
        f"stopping.{field}",
    )


async def test_members_that_exchange_text_are_refused_before_anything_is_leased(rig: Rig) -> None:
    leased = [member._turns for member in rig.members.values()]
    with pytest.raises(Unsupported, match="one member pinned") as caught:
        await reply(rig, "unlike", REGEX)
    assert (caught.value.reason, caught.value.field) == ("FORMAT_NEEDS_ONE_VOCABULARY", "format")
    with pytest.raises(Unsupported, match="or a mean without") as caught:
        await reply(rig, "learning", REGEX)
    assert (caught.value.reason, caught.value.field) == ("FORMAT_HIDES_EVIDENCE", "format")
    assert [repr(turns) for turns in leased] == [repr(m._turns) for m in rig.members.values()]


@pytest.mark.parametrize("blend", ["tokens", "mean"])
async def test_what_only_the_library_can_tell_wrong_is_refused_too(rig: Rig, blend: str) -> None:
    for wanted, words in (
        (OutputFormat("regex", "(a"), "unclosed group"),
        (OutputFormat("json_schema", '{"type": "strin"}'), "Invalid type: strin"),
    ):
        with pytest.raises(InvalidRequest, match=words) as caught:
            await reply(rig, blend, wanted)
        assert (caught.value.reason, caught.value.field) == ("INVALID_FORMAT", wanted.field)
    while rig.num_held() != (0, 0):
        await asyncio.sleep(0.001)
