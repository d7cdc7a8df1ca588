"""Drafts against none: the same replies, one at a time, in one process, with everything but Ray.

    python -m benchmarks.speculation --page docs/benchmarks.md

The large member is made at run time, by passthrough merging: `tiny-austen` with each of its five
layers there 20 times (--copies), all but one silent (outputs scaled by 0, as LLaMA-Pro adds
layers). It has tiny-austen's law at the cost of a model 20 times as deep. Who drafts is tiny-base,
five layers, from which tiny-austen was tuned: how often a draft stands is how often these two
models agree, and what a pass costs is what its depth costs. Each round takes every case once
without and once with drafts, next to each other and in changing order, on the same seed; the
texts are compared, and the ratio is taken per round.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.members.base import Prompt
from cluster.members.build import build_replica
from cluster.members.direct import DirectMember
from cluster.members.exchange import ExchangePool
from cluster.members.server import MemberServer
from cluster.merging.merge import merge
from cluster.router.answers import Outcome
from cluster.router.core import Router
from cluster.router.requests import GenerationRequest, Sampling, Stopping
from cluster.spec import RecipeSpec, parse_spec
from deployments.bench.figures import Spread
from deployments.bench.machine import machine_line
from deployments.bench.markdown import number, put_fragment, table

NUM_LAYERS = 5
PROMPT = "It is a truth universally acknowledged, that"
CASES = {
    "one": ("`mixture` of large alone", "method: mixture, members: {large: 1, small: 0}"),
    "two": ("`mixture`, half and half", "method: mixture, members: {large: 0.5, small: 0.5}"),
    "mean": ("`ensemble`, mean", "method: ensemble, members: {large: 0.5, small: 0.5}"),
    "contrast": ("`contrast`", "method: contrast, members: {large: expert, small: amateur}"),
    "alike": ("`mixture` of equal sizes", "method: mixture, members: {twin: 0.5, small: 0.5}"),
}


@dataclass(slots=True)
class Measured:
    """One case, by round: without drafts and with them."""

    wall: list[float] = field(default_factory=list)  # ratios, without to with
    cpu: list[float] = field(default_factory=list)  # of processor time, of all threads
    tokens_per_s: tuple[list[float], list[float]] = field(default_factory=lambda: ([], []))
    passes: tuple[list[float], list[float]] = field(default_factory=lambda: ([], []))  # per token
    num_drafted: int = 0
    num_accepted: int = 0


def spec_of(large: Path) -> str:
    """The blend file: each case without and with drafts."""
    setting = "dtype: float32, kv_memory: 64MiB, resources: {num_cpus: 1}"
    blends = "".join(
        f"  {name}: {{{rule}}}\n  {name}-ahead: {{{rule}, speculate: {{draft: small}}}}\n"
        for name, (_, rule) in CASES.items()
    )
    return (
        "version: 1\nmembers:\n"
        f"  large: {{model: {large}, {setting}}}\n"
        f"  small: {{model: embedded:tiny-base, {setting}}}\n"
        f"  twin: {{model: embedded:tiny-austen, {setting}}}\n"
        f"blends:\n{blends}"
    )


def deepen(folder: Path, num_copies: int) -> None:
    """Write the large member."""
    silent = [{"filter": name, "value": 0} for name in ("o_proj", "down_proj")] + [{"value": 1}]
    slices: list[dict[str, Any]] = []
    for layer in range(NUM_LAYERS):
        source: dict[str, Any] = {
            "model": "embedded:tiny-austen",
            "layer_range": [layer, layer + 1],
        }
        more = {**source, "parameters": {"scale": silent}}
        slices += [{"sources": [source]}] + [{"sources": [more]}] * (num_copies - 1)
    recipe = RecipeSpec.model_validate({"merge_method": "passthrough", "slices": slices})
    merge(recipe, folder, download=False)


@asynccontextmanager
async def serving(text: str) -> AsyncIterator[Router]:
    """One replica of each member behind its exchange, and a router."""
    spec, exchanges = parse_spec(text), ExchangePool()
    servers = {n: MemberServer(await build_replica(n, m)) for n, m in spec.members.items()}
    try:
        for server in servers.values():
            await server.start("127.0.0.1")
        members = {n: DirectMember(n, [server], exchanges) for n, server in servers.items()}
        router = Router(spec, members)
        await router.learn_members()
        yield router
    finally:
        await exchanges.close()
        for server in servers.values():
            await server.stop()
            server.replica.stop()


async def reply(router: Router, blend: str, seed: int, num: int) -> tuple[list[int], Outcome]:
    """One reply of so many tokens."""
    stopping = Stopping(max_tokens=num, ignore_eos=True)
    request = GenerationRequest(blend, Prompt(text=PROMPT), Sampling(seed=seed), stopping)
    ids: list[int] = []
    async for update in router.generate(request):
        ids += [token.token.id for token in update.tokens]
        if update.outcome is not None:
            return ids, update.outcome
    raise AssertionError("a reply has an outcome")


async def measure(router: Router, num_rounds: int, num_tokens: int) -> dict[str, Measured]:
    """All cases, round by round."""
    found = {name: Measured() for name in CASES}
    for round_number in range(-1, num_rounds):  # the first one warms up, and learns what pays
        for name, into in found.items():
            ways = [(name, 0), (f"{name}-ahead", 1)]
            texts: list[list[int]] = [[], []]
            walls, cpus = [0.0, 0.0], [0.0, 0.0]
            for blend, way in ways if round_number % 2 else reversed(ways):
                wall_s, cpu_s = time.perf_counter(), time.process_time()
                texts[way], outcome = await reply(router, blend, round_number + 1, num_tokens)
                walls[way] = time.perf_counter() - wall_s
                cpus[way] = time.process_time() - cpu_s
                if round_number >= 0:
                    into.tokens_per_s[way].append(num_tokens / walls[way])
                    passes = sum(
                        u.seat.forward_passes for u in outcome.usage if u.member != "small"
                    )
                    into.passes[way].append(passes / num_tokens)
                    into.num_drafted += sum(usage.drafted_tokens for usage in outcome.usage)
                    into.num_accepted += sum(usage.accepted_tokens for usage in outcome.usage)
            assert texts[0] == texts[1], f"drafts changed a text of {name}"
            if round_number >= 0:
                into.wall.append(walls[0] / walls[1])
                into.cpu.append(cpus[0] / cpus[1])
    return found


def report(found: dict[str, Measured], num_rounds: int, num_tokens: int, depths: str) -> str:
    """The table, and what it was measured on."""
    head = ("case", "faster", "processor time", "tokens/s", "passes of the other", "drafts stood")
    rows = []
    for name, case in found.items():
        before, after = (Spread.of(values).median for values in case.tokens_per_s)
        passes = [number(Spread.of(values).median) for values in case.passes]
        share = f"{case.num_accepted / case.num_drafted:.0%}" if case.num_drafted else "none made"
        rows.append(
            (
                CASES[name][0],
                _ratio(case.wall),
                _ratio(case.cpu),
                f"{number(before)} → {number(after)}",
                " → ".join(passes),
                share,
            )
        )
    about = (
        f"{depths}; {num_rounds} rounds of {num_tokens} tokens, one stream: medians of the "
        "rounds' ratios (lowest to highest), without drafts to with; "
        "passes per token of the member that does not draft; all texts equal."
    )
    return "\n".join([*table(head, rows), "", about, "", f"Machine: {machine_line()}."])


def _ratio(values: Sequence[float]) -> str:
    spread = Spread.of(values)
    return f"{spread.median:.2f}x ({spread.low:.2f} to {spread.high:.2f})"


async def main(page: Path | None, num_rounds: int, num_tokens: int, num_copies: int) -> None:
    """Make the large member, measure, tell."""
    with tempfile.TemporaryDirectory() as scratch:
        large = Path(scratch) / "large"
        deepen(large, num_copies)
        async with serving(spec_of(large)) as router:
            found = await measure(router, num_rounds, num_tokens)
    depths = f"{NUM_LAYERS * num_copies} layers against {NUM_LAYERS}"
    content = report(found, num_rounds, num_tokens, depths)
    print(content)
    if page is not None:
        put_fragment(page, "speculation", content)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--page", type=Path, help="the page whose part it writes")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--copies", type=int, default=20, help="how often each layer is there")
    given = parser.parse_args()
    asyncio.run(main(given.page, given.rounds, given.tokens, given.copies))
