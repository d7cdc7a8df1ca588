"""The sampling law of `mixture/token`: at every step exactly Σ λᵢ warp(pᵢ), over the whole path.

The reference is plain transformers and a straight float64 warp, written here. Seeds are fixed, so a
test passes or fails for good; over seeds, one of the four true comparisons would fail with
probability 4e-6 (FALSE_ALARM_RATE each).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from functools import cache

import numpy as np
import pytest
import pytest_asyncio
import torch
from scipy.stats import chisquare
from transformers import AutoModelForCausalLM, AutoTokenizer

from cluster.members.base import Prompt
from cluster.models.resolve import resolve
from cluster.router.requests import GenerationRequest, Overrides, Sampling, Stopping
from tests.reference import warp
from tests.rig import Rig, running

pytestmark = pytest.mark.asyncio(loop_scope="module")

FALSE_ALARM_RATE = 1e-6
NUM_DRAWS = 2000
MIN_EXPECTED = 5.0
PROMPT = "My dear"  # where the two styles go on differently
WEIGHTS = {"austen": 0.35, "kjv": 0.65}
SETTINGS = [(1.0, 1.0), (0.7, 0.9)]  # temperature, top-p


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rig() -> AsyncIterator[Rig]:
    async with running() as rig:
        yield rig


@cache
def plain(name: str) -> tuple[torch.nn.Module, list[int], int]:
    folder = resolve(f"embedded:tiny-{name}", download=False)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, tokenizer(PROMPT).input_ids, tokenizer.eos_token_id


def mixed(
    rows: list[list[int]],
    temperature: float,
    top_p: float,
    weights: Mapping[str, float] = WEIGHTS,
) -> np.ndarray:
    """Σ λᵢ warp(pᵢ) after each of the given continuations of the prompt."""
    total: np.ndarray | float = 0.0
    for name, weight in weights.items():
        model, prompt, _ = plain(name)
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + row for row in rows])).logits[:, -1].double()
        warped = np.stack([warp(row, temperature, top_p) for row in logits.numpy()])
        total = total + weight * warped
    assert isinstance(total, np.ndarray)
    return total


@cache
def expected(temperature: float, top_p: float) -> tuple[dict[tuple[int, ...], float], ...]:
    """Probabilities of the first token, and of the first two (one, where the turn ends)."""
    first = mixed([[]], temperature, top_p)[0]
    end = plain("austen")[2]
    possible = np.flatnonzero(first)
    likely = possible[possible != end]
    both = first[likely, None] * mixed([[int(token)] for token in likely], temperature, top_p)
    rows, columns = np.nonzero(both)
    pairs = zip(likely[rows].tolist(), columns.tolist(), strict=True)
    two = {(end,): float(first[end])} | dict(zip(pairs, both[rows, columns].tolist(), strict=True))
    return {(int(t),): float(first[t]) for t in possible}, two


async def draw(rig: Rig, temperature: float, top_p: float) -> list[tuple[int, ...]]:
    """The first two tokens of many replies; an end of turn is its token."""
    end = plain("austen")[2]
    room = asyncio.Semaphore(32)

    async def one(seed: int) -> tuple[int, ...]:
        request = GenerationRequest(
            "tokens",
            Prompt(text=PROMPT),
            Sampling(temperature=temperature, top_p=top_p, seed=seed),
            Stopping(max_tokens=2),
            overrides=Overrides(weights=WEIGHTS),
        )
        async with room:
            updates = [update async for update in rig.router.generate(request)]
        ids = [token.token.id for update in updates for token in update.tokens]
        return tuple(ids) if len(ids) == 2 else (*ids, end)

    return await asyncio.gather(*(one(seed) for seed in range(NUM_DRAWS)))


def p_value(drawn: list[tuple[int, ...]], law: Mapping[tuple[int, ...], float]) -> float:
    """Chi-square, with all outcomes too rare for a cell of their own in one."""
    counts = Counter(drawn)
    assert all(law.get(outcome, 0) > 0 for outcome in counts), "drew what the law excludes"
    cells = [outcome for outcome, p in law.items() if p * NUM_DRAWS >= MIN_EXPECTED]
    observed = [float(counts[outcome]) for outcome in cells]
    wanted = [law[outcome] * NUM_DRAWS for outcome in cells]
    rest = NUM_DRAWS - sum(wanted)
    if rest >= MIN_EXPECTED:
        observed.append(NUM_DRAWS - sum(observed))
        wanted.append(rest)
    scale = sum(observed) / sum(wanted)
    return float(chisquare(observed, [w * scale for w in wanted]).pvalue)


@pytest.mark.parametrize(("temperature", "top_p"), SETTINGS)
async def test_token_mixtures_have_the_law_of_the_ensemble(
    rig: Rig, temperature: float, top_p: float
) -> None:
    one, two = expected(temperature, top_p)
    drawn = await draw(rig, temperature, top_p)
    assert p_value([outcome[:1] for outcome in drawn], one) > FALSE_ALARM_RATE
    assert p_value([two_of(outcome) for outcome in drawn], two) > FALSE_ALARM_RATE

    wrong = dict(zip(WEIGHTS, reversed(WEIGHTS.values()), strict=True))
    for planted in (wrong, {"austen": 0.5, "kjv": 0.5}):
        first = mixed([[]], temperature, top_p, planted)[0]
        law = {(int(t),): float(first[t]) for t in np.flatnonzero(first)}
        assert p_value([outcome[:1] for outcome in drawn], law) < FALSE_ALARM_RATE


def two_of(outcome: tuple[int, ...]) -> tuple[int, ...]:
    """A pair whose first token ends the turn has no second one."""
    end = plain("austen")[2]
    return (end,) if outcome[0] == end else outcome
