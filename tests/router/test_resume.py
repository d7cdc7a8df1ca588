"""A reply that another router goes on with: the rest is what the undisturbed one says."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from cluster.blending.gates import Network
from cluster.errors import CuveeError, InvalidRequest, Unsupported
from cluster.gates.file import GateInputs, save_gate
from cluster.members.base import Prompt
from cluster.router.requests import (
    FinishReason,
    GenerationRequest,
    Outcome,
    Output,
    ReplyToken,
    Sampling,
    Stopping,
)
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
        for cut in sorted({0, 1, 6, 11, num // 2, num - 1, num}):
            found = await rest(rig, request, whole, cut)
            assert same(found.tokens, whole.tokens[cut:]), (seed, cut)
            assert found.text == whole.text[len(whole.visible(cut)) :]
            check_same_end(found.outcome, whole.outcome)
