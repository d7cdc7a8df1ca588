"""The public edge over the whole path in one process: what clients see."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cuvee.v1 import blend_pb2, generation_pb2
from tests.rig import SPEC, Rig, running

EXACT = "blends:\n  exact: {method: mixture, exact: true, members: {austen: 1, bytes: 1}}"

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rig() -> AsyncIterator[Rig]:
    async with running(SPEC.replace("blends:", EXACT)) as rig:
        yield rig


def request(**fields: Any) -> generation_pb2.StreamGenerateRequest:
    given: dict[str, Any] = {"blend": "tokens", "prompt": "It is a truth"}
    given |= {"sampling": {"seed": 5}, "stopping": {"max_tokens": 40}} | fields
    return generation_pb2.StreamGenerateRequest(**given)


def chat(*contents: str) -> generation_pb2.Chat:
    """User and assistant in turn."""
    roles = [generation_pb2.ROLE_USER, generation_pb2.ROLE_ASSISTANT]
    messages = [
        generation_pb2.ChatMessage(role=roles[i % 2], content=content)
        for i, content in enumerate(contents)
    ]
    return generation_pb2.Chat(messages=messages)


async def stream(rig: Rig, **fields: Any) -> tuple[str, list[Any], Any]:
    pieces = [piece async for piece in rig.generation.StreamGenerate(request(**fields))]
    assert all(not piece.HasField("outcome") for piece in pieces[:-1])
    tokens = [token for piece in pieces for token in piece.tokens]
    return "".join(piece.text_delta for piece in pieces), tokens, pieces[-1].outcome


async def test_a_reply_streams_with_attribution_and_an_outcome(rig: Rig) -> None:
    text, tokens, outcome = await stream(rig)
    assert text.encode() == b"".join(token.bytes for token in tokens)
    assert {token.member for token in tokens} == {"austen", "kjv"}
    assert outcome.usage.completion_tokens == len(tokens)
    assert outcome.seed == 5
    assert outcome.blend == "tokens"
    assert outcome.blend_revision == rig.spec.revision_of("tokens")


async def test_a_reply_has_the_format_asked_for(rig: Rig) -> None:
    text, _, outcome = await stream(rig, format={"regex": "[a-z]{3}-[0-9]{2}"})
    assert re.fullmatch("[a-z]{3}-[0-9]{2}", text)
    assert outcome.finish_reason == generation_pb2.FINISH_REASON_END_OF_TURN
    schema = json.dumps({"enum": [["a", 1], {"b": None}]})
    given = request(format={"json_schema": schema}).SerializeToString()
    whole = await rig.generation.Generate(generation_pb2.GenerateRequest.FromString(given))
    assert json.loads(whole.text) in (["a", 1], {"b": None})


async def test_the_same_seed_gives_the_same_text_streamed_or_whole(rig: Rig) -> None:
    text, _, _ = await stream(rig)
    whole = await rig.generation.Generate(
        generation_pb2.GenerateRequest.FromString(request().SerializeToString())
    )
    assert whole.text == text
    other, _, _ = await stream(rig, sampling={"seed": 6})
    assert other != text


async def test_without_a_seed_one_is_drawn_and_reported(rig: Rig) -> None:
    text, _, outcome = await stream(rig, sampling={})
    again, _, _ = await stream(rig, sampling={"seed": outcome.seed})
    assert again == text


async def test_sixteen_at_once_say_what_each_says_alone(rig: Rig) -> None:
    alone = [await stream(rig, sampling={"seed": seed}) for seed in range(16)]
    together = await asyncio.gather(*(stream(rig, sampling={"seed": seed}) for seed in range(16)))
    assert [reply[0] for reply in together] == [reply[0] for reply in alone]


async def test_logprobs_and_candidates_come_when_asked_for(rig: Rig) -> None:
    _, tokens, _ = await stream(rig, output={"num_top_candidates": 3}, sampling={"temperature": 0})
    for token in tokens:
        assert token.logprob_kind == generation_pb2.LOGPROB_KIND_SAMPLED_MEMBER
        assert len(token.top_candidates) == 3
        assert token.id == token.top_candidates[0].id
        assert token.logprob == pytest.approx(token.top_candidates[0].logprob)
    _, plain, _ = await stream(rig)
    assert not any(token.HasField("logprob") for token in plain)


async def test_attribution_can_be_declined(rig: Rig) -> None:
    text, tokens, outcome = await stream(rig, output={"attribution": False})
    assert text
    assert not tokens
    assert outcome.usage.completion_tokens > 0


async def test_overrides_hold_for_one_request(rig: Rig) -> None:
    _, tokens, _ = await stream(rig, overrides={"member": "kjv"})
    assert {token.member for token in tokens} == {"kjv"}
    _, tokens, _ = await stream(rig, overrides={"weights": {"austen": 2.0}})
    assert {token.member for token in tokens} == {"austen"}
    _, tokens, _ = await stream(rig, overrides={"span": {"num_tokens": 5}})
    assert all(tokens[i].member == tokens[i - i % 5].member for i in range(len(tokens)))


async def test_min_tokens_and_ignore_eos_keep_the_turn_open(rig: Rig) -> None:
    stopping = {"max_tokens": 150, "ignore_eos": True}
    _, tokens, outcome = await stream(rig, stopping=stopping)
    assert len(tokens) == 150
    assert outcome.finish_reason == generation_pb2.FINISH_REASON_MAX_TOKENS
    stopping = {"max_tokens": 120, "min_tokens": 90}
    replies = await asyncio.gather(
        *(stream(rig, sampling={"seed": seed}, stopping=stopping) for seed in range(5))
    )
    assert all(len(tokens) >= 90 for _, tokens, _ in replies)


async def test_a_reply_ends_with_the_context(rig: Rig) -> None:
    prompt = "and the people " * 210
    _, _, outcome = await stream(
        rig, prompt=prompt, stopping={"max_tokens": 400, "ignore_eos": True}
    )
    assert outcome.finish_reason == generation_pb2.FINISH_REASON_CONTEXT_FULL


async def test_members_of_different_tokenizers_make_one_text(rig: Rig) -> None:
    text, tokens, outcome = await stream(rig, blend="mixed", stopping={"max_tokens": 150})
    assert {token.member for token in tokens} == {"austen", "bytes"}
    assert text.encode() == b"".join(token.bytes for token in tokens)
    assert outcome.usage.completion_tokens == len(tokens)


@pytest.mark.parametrize(
    "prompt",
    [
        "café naïve Ångström",
        "漢字とかな",
        "emoji 👩‍👩‍👧‍👦 👍🏽",
        "def f(x):\n\treturn  x",
        "two  spaces",
    ],
)
async def test_any_text_may_come_before_members_of_different_tokenizers(
    rig: Rig, prompt: str
) -> None:
    text, tokens, _ = await stream(
        rig, blend="mixed", prompt=prompt, overrides={"span": {"num_tokens": 1}}
    )
    assert b"".join(token.bytes for token in tokens).decode("utf-8", "replace") == text


async def test_the_tokens_of_a_chat_are_counted_as_each_member_renders_it(rig: Rig) -> None:
    history = ["And what of number one?", "There is none.", "And of the other?"]

    async def count(*contents: str) -> dict[str, int]:
        request = generation_pb2.CountTokensRequest(blend="mixed", chat=chat(*contents))
        answer = await rig.generation.CountTokens(request)
        return {member.member: member.num_tokens for member in answer.members}

    counts = await count(*history)
    assert counts["bytes"] > sum(map(len, history)) > counts["austen"] > 10
    assert (await count(*history[:1]))["austen"] < counts["austen"]
    text, _, outcome = await stream(rig, blend="mixed", prompt=None, chat=chat(*history))
    assert text
    assert {u.member: u.prompt_tokens for u in outcome.usage.members} == counts


async def test_cancelling_frees_everything(rig: Rig) -> None:
    call = rig.generation.StreamGenerate(
        request(stopping={"max_tokens": 400, "ignore_eos": True}, blend="mixed")
    )
    async for piece in call:
        if piece.text_delta:
            break
    assert rig.num_held() != (0, 0)
    call.cancel()
    await freed(rig)


async def test_a_deadline_frees_everything(rig: Rig) -> None:
    call = rig.generation.StreamGenerate(
        request(stopping={"max_tokens": 400, "ignore_eos": True}), timeout=0.3
    )
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in call:
            pass
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await freed(rig)


async def freed(rig: Rig) -> None:
    """Wait until nothing is held; the test's own time limit is the only clock."""
    while rig.num_held() != (0, 0) or rig.router.num_active:
        await asyncio.sleep(0.01)
    for server in rig.all_servers:
        engine = server.replica.engine._engine  # type: ignore[attr-defined]
        while engine.load().num_free_pages != engine.load().num_pages:
            await asyncio.sleep(0.01)


async def test_score_agrees_between_members_mixture_and_replies(rig: Rig) -> None:
    fields = {"prompt": "It is a truth", "continuation": " universally acknowledged"}
    score = await rig.generation.Score(generation_pb2.ScoreRequest(blend="tokens", **fields))
    assert [member.member for member in score.members] == ["austen", "kjv"]
    assert score.logprob == pytest.approx(sum(t.logprob for t in score.mixture_tokens))
    low, high = sorted(member.logprob for member in score.members)
    assert low < score.logprob < high + 25
    assert score.num_bytes == len(fields["continuation"])
    replies = await rig.generation.Score(generation_pb2.ScoreRequest(blend="replies", **fields))
    assert not replies.mixture_tokens
    assert low < replies.logprob < high
    mixed = await rig.generation.Score(generation_pb2.ScoreRequest(blend="mixed", **fields))
    assert not mixed.HasField("logprob")


async def test_blends_are_listed_and_described(rig: Rig) -> None:
    listed = await rig.blends.ListBlends(blend_pb2.ListBlendsRequest())
    assert [blend.name for blend in listed.blends] == ["tokens", "replies", "mixed"]  # not exact
    mixed = (await rig.blends.GetBlend(blend_pb2.GetBlendRequest(name="mixed"))).blend
    assert mixed.exchange_kind == blend_pb2.EXCHANGE_KIND_TEXT
    assert mixed.span.unit == generation_pb2.SPAN_UNIT_WORD
    assert listed.blends[0].exchange_kind == blend_pb2.EXCHANGE_KIND_TOKEN_IDS
    assert [member.weight for member in listed.blends[0].members] == [0.6, 0.4]


async def test_health_is_told_overall_and_per_blend(rig: Rig) -> None:
    stub: Any = health_pb2_grpc.HealthStub(rig.channel)

    async def status(service: str) -> Any:
        return (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status

    for service in ("", "tokens", "mixed"):
        while await status(service) != health_pb2.HealthCheckResponse.SERVING:
            await asyncio.sleep(0.05)
    assert await status("exact") == health_pb2.HealthCheckResponse.NOT_SERVING


BAD = [
    ({"prompt": ""}, "INVALID_ARGUMENT", "EMPTY_PROMPT", "prompt"),
    ({"prompt": None, "chat": {}}, "INVALID_ARGUMENT", "EMPTY_PROMPT", "chat.messages"),
    ({"blend": "nope"}, "NOT_FOUND", "UNKNOWN_BLEND", "blend"),
    ({"blend": "exact"}, "FAILED_PRECONDITION", "VOCABULARY_MISMATCH", "blend"),
    ({"prompt": "and the people " * 400}, "INVALID_ARGUMENT", "PROMPT_TOO_LONG", "prompt"),
    (
        {"sampling": {"temperature": -1}},
        "INVALID_ARGUMENT",
        "INVALID_VALUE",
        "sampling.temperature",
    ),
    ({"sampling": {"top_p": 0}}, "INVALID_ARGUMENT", "INVALID_VALUE", "sampling.top_p"),
    (
        {"sampling": {"min_p": float("nan")}},
        "INVALID_ARGUMENT",
        "INVALID_VALUE",
        "sampling.min_p",
    ),
    ({"stopping": {"max_tokens": 0}}, "INVALID_ARGUMENT", "INVALID_VALUE", "stopping.max_tokens"),
    ({"stopping": {"max_tokens": 401}}, "INVALID_ARGUMENT", "INVALID_VALUE", "stopping.max_tokens"),
    ({"stopping": {"min_tokens": 401}}, "INVALID_ARGUMENT", "INVALID_VALUE", "stopping.min_tokens"),
    ({"stopping": {"stop": [""]}}, "INVALID_ARGUMENT", "INVALID_VALUE", "stopping.stop[0]"),
    (
        {"overrides": {"weights": {"austen": 0.0}}},
        "INVALID_ARGUMENT",
        "INVALID_WEIGHTS",
        "overrides.weights",
    ),
    (
        {"overrides": {"weights": {"bierce": 1.0}}},
        "INVALID_ARGUMENT",
        "UNKNOWN_MEMBER",
        "overrides.weights[bierce]",
    ),
    (
        {"overrides": {"member": "bierce"}},
        "INVALID_ARGUMENT",
        "UNKNOWN_MEMBER",
        "overrides.member",
    ),
    ({"overrides": {"span": {}}}, "INVALID_ARGUMENT", "INVALID_VALUE", "overrides.span"),
    (
        {"prompt": None, "chat": {"messages": [{"content": "hi"}]}},
        "INVALID_ARGUMENT",
        "INVALID_ROLE",
        "chat.messages[0].role",
    ),
    ({"format": {}}, "INVALID_ARGUMENT", "INVALID_FORMAT", "format"),
    ({"format": {"regex": ""}}, "INVALID_ARGUMENT", "INVALID_FORMAT", "format.regex"),
    ({"format": {"regex": "(a" * 9000}}, "INVALID_ARGUMENT", "INVALID_FORMAT", "format.regex"),
    ({"format": {"regex": "a" * 70000}}, "INVALID_ARGUMENT", "INVALID_FORMAT", "format.regex"),
    ({"format": {"json_schema": "{"}}, "INVALID_ARGUMENT", "INVALID_FORMAT", "format.json_schema"),
    (
        {"format": {"json_schema": '{"type": "strin"}'}},
        "INVALID_ARGUMENT",
        "INVALID_FORMAT",
        "format.json_schema",
    ),
    (
        {"format": {"regex": "a"}, "stopping": {"min_tokens": 2}},
        "INVALID_ARGUMENT",
        "CONFLICTING_OPTIONS",
        "stopping.min_tokens",
    ),
    (
        {"format": {"regex": "a"}, "blend": "mixed"},
        "FAILED_PRECONDITION",
        "FORMAT_NEEDS_ONE_VOCABULARY",
        "format",
    ),
]


@pytest.mark.parametrize(("fields", "code", "reason", "path"), BAD)
async def test_bad_input_is_refused_with_status_reason_and_field(
    rig: Rig, fields: dict[str, Any], code: str, reason: str, path: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stream(rig, **fields)
    assert caught.value.code().name == code
    status = status_pb2.Status.FromString(details_of(caught.value))
    info, request_error = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    assert status.details[0].Unpack(info)
    assert status.details[1].Unpack(request_error)
    assert (info.reason, info.domain) == (reason, "cuvee")
    assert request_error.field_violations[0].field == path
    assert "expected" in status.message or "fit" in status.message
    await freed(rig)


def details_of(error: grpc.aio.AioRpcError) -> bytes:
    metadata = dict(error.trailing_metadata() or ())
    found = metadata["grpc-status-details-bin"]
    assert isinstance(found, bytes)
    return found
