"""Scores under all members together: by the law of replies, in the passes of prefills."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from cluster.members import server
from cluster.members.base import Prompt, StepToken
from cluster.router import together
from cluster.router.plan import make_plan
from cluster.router.requests import GenerationRequest, Sampling, ScoreRequest, Stopping
from cluster.router.seats import Seats
from cluster.router.together import logprobs_along
from cluster.router.transcript import Transcript
from tests.rig import Rig, running

pytestmark = pytest.mark.asyncio(loop_scope="module")

TINY = "dtype: float32, kv_memory: 32MiB"
MEMBERS = "members: {austen: 0.6, kjv: 0.4}"
SPEC = f"""
version: 1
members:
  austen: {{model: embedded:tiny-austen, {TINY}}}
  kjv: {{model: embedded:tiny-kjv, {TINY}}}
  bierce: {{model: embedded:tiny-bierce, {TINY}}}
blends:
  product: {{method: ensemble, rule: product, candidates: 8, {MEMBERS}}}
  mean: {{method: ensemble, candidates: 8, {MEMBERS}}}
  proxy: {{method: proxy, alpha: 0.8, members: {{kjv: base, austen: expert, bierce: anti}}}}
  contrast: {{method: contrast, beta: 0.4, members: {{austen: expert, kjv: amateur}}}}
"""
LAWS = (Sampling(seed=5), Sampling(0.7, seed=5), Sampling(1.2, top_p=0.9, top_k=40, seed=5))
PROMPT = Prompt(text="It is a truth")
VOCAB_BYTES = 4 * 2048


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rig() -> AsyncIterator[Rig]:
    async with running(SPEC, num_replicas=1) as rig:
        yield rig


@pytest.mark.parametrize("num_at_once", [7, 512])
@pytest.mark.parametrize("sampling", LAWS)
@pytest.mark.parametrize("blend", ["product", "mean", "proxy", "contrast"])
async def test_a_text_scores_by_the_very_law_it_was_drawn_by(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, blend: str, sampling: Sampling, num_at_once: int
) -> None:
    monkeypatch.setattr(together, "MAX_TOLD_BYTES", num_at_once * VOCAB_BYTES)
    request = GenerationRequest(blend, PROMPT, sampling, Stopping(max_tokens=24))
    drawn: list[StepToken] = []
    async for update in rig.router.generate(request):
        drawn += [token.token for token in update.tokens]
    plan = make_plan(request, rig.router.blend(blend), rig.spec.limits, fresh_seed=0)
    seats = Seats(plan, rig.members, 2.0)
    try:
        found = await logprobs_along(plan, seats, Transcript(plan.members, plan.form, ()), drawn)
    finally:
        await seats.leave()
    assert found == pytest.approx([token.logprob for token in drawn], abs=1e-4)


def passes(rig: Rig) -> int:
    engines = [server.replica.engine._engine for server in rig.all_servers]  # type: ignore[attr-defined]
    return sum(engine.counts.forward_passes for engine in engines)


@pytest.mark.parametrize("num_at_once", [10, 512])
@pytest.mark.parametrize(("blend", "num_members"), [("product", 2), ("proxy", 3), ("contrast", 2)])
async def test_a_score_takes_the_passes_of_prefills(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, blend: str, num_members: int, num_at_once: int
) -> None:
    monkeypatch.setattr(together, "MAX_TOLD_BYTES", num_at_once * VOCAB_BYTES)
    before = passes(rig)
    text = f" universally acknowledged in {blend} at {num_at_once}, that a single man must want."
    score = await rig.router.score(ScoreRequest(blend, PROMPT, text))
    num_steps = -(-len(score.mixture) // num_at_once)
    assert len(score.mixture) > 20
    # Each member reads the text once for its own view of it, and once to tell all of what may come.
    assert passes(rig) - before == num_members * (1 + num_steps)


async def test_what_is_told_at_once_goes_out_in_bounded_messages(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "FULL_BYTES", 40_000)
    text = " universally acknowledged, that a single man in possession of a good fortune must want."
    before = rig.exchanges.counts
    score = await rig.router.score(ScoreRequest("product", PROMPT, text))
    after = rig.exchanges.counts
    num_messages = after.messages_received - before.messages_received
    num_bytes = after.bytes_received - before.bytes_received
    assert num_bytes > 2 * len(score.mixture) * VOCAB_BYTES
    assert num_messages >= num_bytes / 60_000


async def test_a_replica_lost_while_it_tells_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(together, "MAX_TOLD_BYTES", 5 * VOCAB_BYTES)
    request = ScoreRequest("product", PROMPT, " universally acknowledged, that a single man must.")
    async with running(SPEC, num_replicas=2) as rig:
        undisturbed = await rig.router.score(request)
        lost = rig.servers["kjv"][1]  # whose turn it is for the second of a score's two sequences
        submit, num_submitted = lost.replica.engine.submit, 0

        def swallow_the_third(work: object) -> None:
            nonlocal num_submitted
            num_submitted += 1
            if num_submitted < 3:
                submit(work)  # type: ignore[arg-type]
            elif num_submitted == 3:
                rig.members["kjv"].servers.remove(lost)
                lost.replica._loop.create_task(lost.stop())

        lost.replica.engine.submit = swallow_the_third  # type: ignore[method-assign]
        score = await rig.router.score(request)
    assert num_submitted == 3
    undisturbed_logprobs = [token.logprob for token in undisturbed.mixture]
    assert [token.logprob for token in score.mixture] == pytest.approx(
        undisturbed_logprobs, abs=1e-5
    )
