"""A run of the pool as tables and as JSON, and what a larger pool would need by its figures."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

from benchmarks.pool.device import Timing
from benchmarks.pool.load import Phase, Quantiles
from benchmarks.pool.sizing import Costs, Demand, Needs, needs
from deployments.bench.markdown import number, table

_TARGET = 0.6  # utilisation of a router's core at which a load is called carried


@dataclass(frozen=True, slots=True)
class Rest:
    """What a router spends while nobody asks, and has."""

    num_exchanges: int
    cpu_s_per_s: float
    resident_bytes: int


@dataclass(frozen=True, slots=True)
class Load:
    """One kind of request by so many streams: short replies, then long ones, as many of them."""

    case: str
    blend: str
    num_streams: int
    short: Phase
    long: Phase
    idle_cpu_s_per_s: float

    @property
    def cpu_per_token_s(self) -> float:
        """Of the router, without what a generation costs however short it is."""
        cpu_s = self._busy_s(self.long) - self._busy_s(self.short)
        return cpu_s / (self.long.num_tokens - self.short.num_tokens)

    @property
    def cpu_per_generation_s(self) -> float:
        """Of the router, without its tokens."""
        rest = self._busy_s(self.short) - self.short.num_tokens * self.cpu_per_token_s
        return rest / self.short.num_generations

    def _busy_s(self, phase: Phase) -> float:
        return phase.router_cpu_s - phase.wall_s * self.idle_cpu_s_per_s


@dataclass(frozen=True, slots=True)
class Run:
    """Everything measured in one run."""

    machine: str
    timing: Timing
    num_replicas: int
    num_hosts: int
    first_rest: Rest
    rest: Rest  # with every exchange open
    floor_cpu_s: float  # of a process that only passes a message on, per message
    loads: Sequence[Load]
    took_s: float

    @property
    def exchange_cpu_s_per_s(self) -> float:
        """Of one exchange at rest."""
        return self._per_exchange(lambda rest: rest.cpu_s_per_s)

    @property
    def exchange_resident_bytes(self) -> float:
        """Of one exchange, in the router."""
        return self._per_exchange(lambda rest: rest.resident_bytes)

    def costs(self, load: Load) -> Costs:
        """What a pool is sized by."""
        long = load.long
        return Costs(
            cpu_per_token_s=load.cpu_per_token_s,
            cpu_per_generation_s=load.cpu_per_generation_s,
            messages_per_token=long.exchange_messages / long.num_tokens,
            bytes_per_token=long.exchange_bytes / long.num_tokens,
            client_bytes_per_token=long.client_bytes / long.num_tokens,
            exchange_resident_bytes=self.exchange_resident_bytes,
            exchange_cpu_s_per_s=self.exchange_cpu_s_per_s,
        )

    def _per_exchange(self, value: Callable[[Rest], float]) -> float:
        num_more = self.rest.num_exchanges - self.first_rest.num_exchanges
        return max(0.0, (value(self.rest) - value(self.first_rest)) / max(1, num_more))


def as_json(run: Run) -> str:
    """Every figure."""
    content = asdict(run)
    for load, figures in zip(run.loads, content["loads"], strict=True):
        figures["cpu_per_token_s"] = load.cpu_per_token_s
        figures["cpu_per_generation_s"] = load.cpu_per_generation_s
        figures["fairness"], figures["slowest_share"] = load.long.fairness, load.long.slowest_share
    return json.dumps(content, indent=1) + "\n"


def as_markdown(run: Run) -> str:
    """What was run, what a router spent, how long clients waited, what a larger pool needs."""
    timing, rest = run.timing, run.rest
    return "\n".join(
        [
            f"{run.machine}.",
            "",
            f"{run.num_replicas} replicas of two members in {run.num_hosts} process(es), each as "
            f"{timing.name}: {1000 * timing.step_s:.1f} ms a pass, {1e6 * timing.token_s:.1f} µs "
            f"for each token fed, {1e6 * timing.sequence_s:.0f} µs for each sequence in it. "
            f"{run.took_s:.0f} s in all. At rest the router spends "
            f"{1000 * rest.cpu_s_per_s:.1f} ms of processor time per second with "
            f"{rest.num_exchanges} exchanges open, "
            f"{1e6 * run.exchange_cpu_s_per_s:.0f} µs for each, and "
            f"{run.exchange_resident_bytes / 1024:.0f} KiB of memory for each. The "
            "floor, a process that only passes each message on from one gRPC stream to another: "
            f"{1000 * run.floor_cpu_s:.3f} ms per message at 64 streams.",
            "",
            "The router:",
            "",
            *table(
                (
                    "case",
                    "streams",
                    "tokens/s",
                    "generations/s",
                    "cores",
                    "CPU per token, ms",
                    "CPU per generation, ms",
                    "messages per token",
                    "bytes per token",
                    "to clients",
                    f"tokens/s at {_TARGET:.0%} of a core",
                ),
                [_cost_row(load) for load in run.loads],
            ),
            "",
            "The clients; median / 95th / 99th percentile:",
            "",
            *table(
                (
                    "case",
                    "streams",
                    "first token, ms",
                    "between tokens, ms",
                    "Jain's index",
                    "slowest",
                    "sequences per pass",
                    "passes late by, ms",
                ),
                [_wait_row(load) for load in run.loads],
            ),
            "",
            *(_sizing(run) if run.timing.step_s else ()),  # else there is no speed of a stream
        ]
    )


def _cost_row(load: Load) -> tuple[str, ...]:
    long = load.long
    per_token_s = load.cpu_per_token_s + load.cpu_per_generation_s * (
        long.num_generations / long.num_tokens
    )
    return (
        load.case,
        str(load.num_streams),
        number(long.num_tokens / long.wall_s),
        number(long.num_generations / long.wall_s),
        f"{long.router_utilisation:.2f}",
        f"{1000 * load.cpu_per_token_s:.3f}",
        number(1000 * load.cpu_per_generation_s),
        number(long.exchange_messages / long.num_tokens),
        number(long.exchange_bytes / long.num_tokens),
        number(long.client_bytes / long.num_tokens),
        number(_TARGET / per_token_s),
    )


def _wait_row(load: Load) -> tuple[str, ...]:
    long = load.long
    return (
        load.case,
        str(load.num_streams),
        _waits(long.first),
        _waits(long.gap),
        f"{long.fairness:.3f}",
        f"{long.slowest_share:.2f}",
        number(long.pass_sequences / long.passes),
        number(1000 * long.late_s / long.passes),
    )


def _waits(quantiles: Quantiles) -> str:
    values = (quantiles.median_ms, quantiles.p95_ms, quantiles.p99_ms)
    return " / ".join(number(value) for value in values)


# -- sizing ---------------------------------------------------------------------------------------

_NUM_REPLICAS = 1000
_STREAMS_PER_REPLICA = 16
_TOKENS_PER_GENERATION = 300
_NUM_LEASED = 2  # members of the blend; of a `response` mixture only the one that is drawn


def _sizing(run: Run) -> list[str]:
    """By the largest load of each kind."""
    largest = {load.case: load for load in run.loads}
    batch = _STREAMS_PER_REPLICA
    rate = 1 / run.timing.pass_s(batch, batch)
    num_cells = math.ceil(_NUM_REPLICAS / run.num_replicas)  # each as large as what was measured
    columns = []
    for load in largest.values():
        demand = Demand(
            num_replicas=_NUM_REPLICAS,
            streams_per_replica=batch,
            stream_tokens_per_s=rate,
            tokens_per_generation=_TOKENS_PER_GENERATION,
            leases_per_generation=1 if load.blend == "replies" else _NUM_LEASED,
            num_cells=num_cells,
            target_utilisation=_TARGET,
        )
        if load.blend == "means":  # all members compute every token
            demand = replace(demand, streams_per_replica=batch / _NUM_LEASED)
        columns.append(needs(run.costs(load), demand))
    return [
        f"What {_NUM_REPLICAS} GPUs need by these figures, one replica each, "
        f"{batch} sequences in a pass, {rate:.0f} tokens/s a stream, {_TOKENS_PER_GENERATION} "
        f"tokens a generation, routers at {_TARGET:.0%} of a core, in {num_cells} cells of routers "
        f"and replicas that know nothing of each other:",
        "",
        *table(
            ("", *largest),
            [(words, *(show(column) for column in columns)) for words, show in _ROWS],
        ),
    ]


_ROWS: tuple[tuple[str, Callable[[Needs], str]], ...] = (
    ("streams", lambda n: _big(n.num_streams)),
    ("tokens/s", lambda n: _big(n.tokens_per_s)),
    ("generations/s", lambda n: _big(n.generations_per_s)),
    ("leases/s", lambda n: _big(n.leases_per_s)),
    ("routers, of one core", lambda n: _big(n.num_routers)),
    ("streams per router", lambda n: _big(n.streams_per_router)),
    ("exchanges per router", lambda n: _big(n.exchanges_per_router)),
    ("their memory in a router, MiB", lambda n: number(n.exchange_bytes_per_router / 2**20)),
    ("exchanges in all", lambda n: _big(n.num_exchanges)),
    ("pings and pongs/s", lambda n: _big(n.pings_per_s)),
    ("messages with replicas/s", lambda n: _big(n.exchange_messages_per_s)),
    ("MB/s with replicas", lambda n: number(n.replica_bytes_per_s / 1e6)),
    ("MB/s to clients", lambda n: number(n.client_bytes_per_s / 1e6)),
    ("health checks/s by the controller", lambda n: _big(n.health_checks_per_s)),
)


def _big(value: float) -> str:
    return f"{value:,.0f}"
