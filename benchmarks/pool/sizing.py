"""From what a router costs to what a pool needs: plain arithmetic, to redo with other numbers.

tokens/s        = streams × tokens/s of one stream
generations/s   = tokens/s / tokens per generation
router cores    = (tokens/s × CPU per token + generations/s × CPU per generation
                   + exchanges × CPU of an exchange at rest) / target utilisation
exchanges       = routers × replicas of a cell × cells
leases/s        = generations/s × members leased
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from cluster.members.silence import PING_INTERVAL_S


@dataclass(frozen=True, slots=True)
class Costs:
    """What one router was measured to spend on one kind of request."""

    cpu_per_token_s: float
    cpu_per_generation_s: float  # leases between processes included, Serve's handles not
    messages_per_token: float  # with replicas, both ways
    bytes_per_token: float  # with replicas, both ways
    client_bytes_per_token: float
    exchange_resident_bytes: float  # of one exchange, in the router
    exchange_cpu_s_per_s: float  # of one exchange at rest: its pings


@dataclass(frozen=True, slots=True)
class Demand:
    """What is wanted of a pool. One replica per GPU."""

    num_replicas: int
    streams_per_replica: float
    stream_tokens_per_s: float
    tokens_per_generation: float
    leases_per_generation: float
    num_cells: int = 1  # groups of routers and replicas that know nothing of each other
    serve_lease_cpu_s: float = (
        0.0025  # a lease by Serve's handle, in the router: docs/benchmarks.md
    )
    target_utilisation: float = 0.6  # of a router's core: what is above absorbs bursts
    health_check_period_s: float = 10.0  # Serve's default, per replica


@dataclass(frozen=True, slots=True)
class Needs:
    """What it takes. Bytes are those of messages, without the framing of HTTP/2, TCP and TLS."""

    num_streams: float
    tokens_per_s: float
    generations_per_s: float
    leases_per_s: float
    num_routers: int  # processes of one core
    streams_per_router: float
    exchanges_per_router: float
    num_exchanges: float
    exchange_bytes_per_router: float  # of memory
    pings_per_s: float  # pings and pongs, in all
    exchange_messages_per_s: float
    replica_bytes_per_s: float
    client_bytes_per_s: float
    health_checks_per_s: float  # by one Serve controller, of its cell's routers and replicas


def needs(costs: Costs, demand: Demand) -> Needs:
    """Routers first, from processor time; all else follows.

    Every router of a cell has an exchange with every replica of it, and exchanges cost something at
    rest, so the number of routers is found by solving for it.
    """
    num_streams = demand.num_replicas * demand.streams_per_replica
    tokens_per_s = num_streams * demand.stream_tokens_per_s
    generations_per_s = tokens_per_s / demand.tokens_per_generation
    leases_per_s = generations_per_s * demand.leases_per_generation
    replicas_per_cell = demand.num_replicas / demand.num_cells
    busy = (
        tokens_per_s * costs.cpu_per_token_s
        + generations_per_s * costs.cpu_per_generation_s
        + leases_per_s * demand.serve_lease_cpu_s
    )
    left = demand.target_utilisation - replicas_per_cell * costs.exchange_cpu_s_per_s
    if left <= 0:
        raise ValueError(
            f"{replicas_per_cell:.0f} exchanges at rest take more than a router's "
            f"{demand.target_utilisation:.0%} of a core; more cells have fewer"
        )
    num_routers = math.ceil(busy / left / demand.num_cells) * demand.num_cells
    num_exchanges = num_routers * replicas_per_cell
    return Needs(
        num_streams=num_streams,
        tokens_per_s=tokens_per_s,
        generations_per_s=generations_per_s,
        leases_per_s=leases_per_s,
        num_routers=num_routers,
        streams_per_router=num_streams / num_routers,
        exchanges_per_router=replicas_per_cell,
        num_exchanges=num_exchanges,
        exchange_bytes_per_router=replicas_per_cell * costs.exchange_resident_bytes,
        pings_per_s=2 * num_exchanges / PING_INTERVAL_S,
        exchange_messages_per_s=tokens_per_s * costs.messages_per_token,
        replica_bytes_per_s=tokens_per_s * costs.bytes_per_token,
        client_bytes_per_s=tokens_per_s * costs.client_bytes_per_token,
        health_checks_per_s=(demand.num_replicas + num_routers)
        / demand.num_cells
        / demand.health_check_period_s,
    )
