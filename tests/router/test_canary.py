"""What users say, and what is said to them, stands in no log."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import pytest_asyncio

from cluster.text.member import MemberText
from cuvee.v1 import generation_pb2 as pb
from tests.rig import SPEC, Rig, running

pytestmark = pytest.mark.asyncio(loop_scope="module")

CANARY = "Zzyzx-7731"  # nothing else says this
PROMPT = f"The word is {CANARY} and"
EXTRA = """
  mean: {method: ensemble, candidates: 32, members: {austen: 0.5, kjv: 0.5}}
  best: {method: choose, rank: likelihood, members: {austen: 1, kjv: 1}}
  team: {method: fuse, members: {austen: proposer, kjv: fuser}}
  topics: {method: route, span: response, members: {austen: 1, kjv: 1},
           gate: {by: keywords, otherwise: austen, rules: [{match: Zzyzx, member: kjv}]}}
limits:"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rig() -> AsyncIterator[Rig]:
    async with running(SPEC.replace("limits:", EXTRA.lstrip("\n"))) as rig:
        yield rig


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """Everything that any logger says."""
    caplog.set_level(logging.DEBUG)
    for name in list(logging.Logger.manager.loggerDict):
        if name.startswith(("cluster", "asyncio", "grpc")):
            caplog.set_level(logging.DEBUG, logger=name)
    return caplog


def stream(**fields: Any) -> pb.StreamGenerateRequest:
    return pb.StreamGenerateRequest(
        **{"prompt": PROMPT, "stopping": {"max_tokens": 8}, "sampling": {"seed": 1}} | fields
    )


async def outcome_of(rig: Rig, request: pb.StreamGenerateRequest) -> str:
    """Carry it out, streamed and whole; OK or the code that it fails with."""
    whole = pb.GenerateRequest.FromString(request.SerializeToString())
    codes = set()
    for call in (rig.generation.StreamGenerate(request), None):
        try:
            if call is None:
                await rig.generation.Generate(whole)
            else:
                async for _ in call:
                    pass
            codes.add("OK")
        except grpc.aio.AioRpcError as error:
            codes.add(error.code().name)
    (code,) = codes
    return code


GOOD: list[dict[str, Any]] = [
    *({"blend": b} for b in ("tokens", "replies", "mixed", "mean", "best", "team", "topics")),
    {"stopping": {"max_tokens": 5, "stop": [CANARY]}},
    {"format": {"regex": f"{CANARY} [a-z]+"}, "stopping": {"max_tokens": 60}},
    {"format": {"json_schema": f'{{"const": "{CANARY}"}}'}, "stopping": {"max_tokens": 60}},
    {"prompt": None, "chat": {"messages": [{"role": pb.ROLE_USER, "content": PROMPT}]}},
]
BAD: list[dict[str, Any]] = [
    {"blend": CANARY},
    {"sampling": {"temperature": -1}},
    {"overrides": {"member": CANARY}},
    {"overrides": {"weights": {CANARY: 1.0}}},
    {"overrides": {"parameters": {CANARY: 1.0}}},
    {"format": {"regex": f"({CANARY}"}},
    {"format": {"json_schema": f'{{"type": "{CANARY}"}}'}},
    {"format": {"json_schema": f"{{{CANARY}"}},
    {"prompt": PROMPT * 400},
    {"prompt": None, "chat": {"messages": [{"role": 77, "content": PROMPT}]}},
]


async def test_no_prompt_and_no_reply_is_logged(rig: Rig, logged: pytest.LogCaptureFixture) -> None:
    for fields in GOOD:
        assert await outcome_of(rig, stream(**fields)) == "OK", fields
    for fields in BAD:
        assert await outcome_of(rig, stream(**fields)) in ("INVALID_ARGUMENT", "NOT_FOUND"), fields
    score = {"prompt": PROMPT, "continuation": f" {CANARY}"}
    await rig.generation.Score(pb.ScoreRequest(blend="tokens", **score))
    await rig.generation.CountTokens(pb.CountTokensRequest(prompt=PROMPT))
    for bad in (CANARY, "mixed"):
        with pytest.raises(grpc.aio.AioRpcError):
            await rig.generation.Score(pb.ScoreRequest(blend=bad, prompt=PROMPT))
    raw = rig.channel.unary_unary("/cuvee.v1.GenerationService/Generate")
    with pytest.raises(grpc.aio.AioRpcError):
        await raw(CANARY.encode() + b"\xff")
    with pytest.raises(grpc.aio.AioRpcError):
        await rig.channel.unary_unary(f"/cuvee.v1.GenerationService/{CANARY}")(b"")
    assert CANARY not in logged.text


async def test_a_failure_within_is_logged_without_what_it_failed_on(
    rig: Rig, logged: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def render(self: MemberText, text: str | None, messages: Any) -> list[int]:
        try:
            raise ValueError(f"cannot read {text} {messages}")
        except ValueError as error:
            raise RuntimeError(f"not {text}") from error

    monkeypatch.setattr(MemberText, "render", render)
    for fields in GOOD[:7]:
        assert await outcome_of(rig, stream(**fields)) == "INTERNAL"
    assert "RuntimeError from" in logged.text
    assert "ValueError from" in logged.text
    assert 'raise RuntimeError(f"not {text}") from error' in logged.text  # the place, not the words
    assert CANARY not in logged.text


async def test_a_handler_that_fails_is_logged_without_what_it_failed_on(
    rig: Rig, logged: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(blend: str, prompt: Any) -> None:
        raise RuntimeError(f"cannot count {prompt}")

    monkeypatch.setattr(rig.router, "count_tokens", fail)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await rig.generation.CountTokens(pb.CountTokensRequest(prompt=PROMPT))
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert CANARY not in (caught.value.details() or "")
    assert "a handler failed: RuntimeError from" in logged.text
    assert CANARY not in logged.text
