"""A pool that runs: its processes, started and stopped together, and what they have spent."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import TypeVar

from benchmarks.pool.device import Timing
from benchmarks.pool.engine import PassCounts
from benchmarks.pool.processes import (
    HostCounts,
    HostPlan,
    RouterCounts,
    RouterPlan,
    run_host,
    run_router,
)
from cluster.members.exchange import ExchangeCounts
from cluster.members.remote import Place
from deployments.bench.children import Child
from deployments.bench.workload import Ask

T = TypeVar("T", ExchangeCounts, PassCounts)

MODEL = "embedded:tiny-austen"  # for its tokenizer; the members' weights are not loaded
MEMBERS = ("first", "second")
_SPEC = """
version: 1
members:
  first: {model: 'embedded:tiny-austen'}
  second: {model: 'embedded:tiny-austen'}
blends:
  tokens: {method: mixture, span: token, members: {first: 0.5, second: 0.5}}
  words: {method: mixture, span: word, members: {first: 0.5, second: 0.5}}
  spans: {method: mixture, span: 8, members: {first: 0.5, second: 0.5}}
  replies: {method: mixture, span: response, members: {first: 0.5, second: 0.5}}
  means: {method: ensemble, rule: mean, members: {first: 0.5, second: 0.5}}
serving: {default_blend: tokens}
limits: {max_concurrent_generations: 65536, max_new_tokens: 65536}
"""
ASKS = {
    ask.blend: ask
    for ask in (
        Ask("mixture/response", "replies"),
        Ask("mixture/8 tokens", "spans"),
        Ask("mixture/word", "words"),
        Ask("mixture/token", "tokens"),
        Ask("ensemble/mean", "means"),
    )
}


@dataclass(frozen=True, slots=True)
class Counts:
    """Spent so far, by all processes."""

    router_cpu_s: float
    hosts_cpu_s: float
    client_cpu_s: float
    exchange: ExchangeCounts
    engines: PassCounts

    def __sub__(self, before: Counts) -> Counts:
        return Counts(
            self.router_cpu_s - before.router_cpu_s,
            self.hosts_cpu_s - before.hosts_cpu_s,
            self.client_cpu_s - before.client_cpu_s,
            _difference(self.exchange, before.exchange),
            _difference(self.engines, before.engines),
        )


@dataclass(frozen=True, slots=True)
class Pool:
    """Replicas in some processes and one router in its own, on loopback."""

    address: str  # of the public edge
    hosts: list[Child[HostCounts]]
    router: Child[RouterCounts]

    def counts(self) -> Counts:
        """What was spent until now; this process is the clients."""
        router, hosts = self.router.ask(), [host.ask() for host in self.hosts]
        engines = PassCounts()
        for host in hosts:
            engines += host.engines
        return Counts(
            router_cpu_s=router.cpu_s,
            hosts_cpu_s=sum(host.cpu_s for host in hosts),
            client_cpu_s=time.process_time(),
            exchange=router.exchange,
            engines=engines,
        )

    @property
    def num_held(self) -> tuple[int, int]:
        """Leases and sequences that are held anywhere."""
        hosts = [host.ask() for host in self.hosts]
        return sum(host.num_leases for host in hosts), sum(host.num_sequences for host in hosts)


@contextmanager
def running_pool(timing: Timing, num_replicas: int, num_hosts: int = 1) -> Iterator[Pool]:
    """Start everything; stop everything. Replicas are shared evenly among members and processes.

    The router has the first core for itself, where there are two.
    """
    cores = sorted(os.sched_getaffinity(0))
    routers, others = frozenset(cores[:1]), frozenset(cores[1:] or cores)
    names = [MEMBERS[number % len(MEMBERS)] for number in range(num_replicas)]
    children: list[Child[HostCounts] | Child[RouterCounts]] = []
    os.sched_setaffinity(0, others)
    try:
        hosts: list[Child[HostCounts]] = []
        shares = [names[number::num_hosts] for number in range(num_hosts)]
        for share in shares:
            host: Child[HostCounts] = Child(run_host, HostPlan(share, MODEL, timing, others))
            hosts.append(host)
            children.append(host)
        places: dict[str, list[Place]] = {name: [] for name in MEMBERS}
        for host, share in zip(hosts, shares, strict=True):
            address = host.address()
            for index, name in enumerate(share):
                places[name].append(Place(address, index))
        router: Child[RouterCounts] = Child(run_router, RouterPlan(_SPEC, places, routers))
        children.append(router)
        yield Pool(router.address(), hosts, router)
    finally:
        for child in reversed(children):
            child.stop()
        os.sched_setaffinity(0, cores)


def _difference(after: T, before: T) -> T:
    parts = {f.name: getattr(after, f.name) - getattr(before, f.name) for f in fields(after)}
    return type(after)(**parts)
