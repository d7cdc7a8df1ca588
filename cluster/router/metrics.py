"""What a router tells Prometheus. Names follow vLLM's, with our prefix and with base units.

Latencies are observed as replies go by. All else is read from the router when somebody asks, so
nothing is counted twice. Labels are names of the blend file and reasons of ours alone: no caller
can make a new one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cluster.router.answers import ReplyToken, Update
from cluster.router.tally import BlendTally, Tally

_TOKEN_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2.5, 5, 20)
_FIRST_S = (0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160)
_REPLY_S = (0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960)


class RouterState(Protocol):
    """What is read of a router."""

    tally: Tally

    @property
    def num_running(self) -> int: ...

    @property
    def num_waiting(self) -> int: ...

    @property
    def catch_up_backlog(self) -> int: ...

    @property
    def num_leases(self) -> Mapping[str, int]: ...

    @property
    def weights(self) -> Mapping[str, Mapping[str, float]]: ...


class RouterMetrics:
    """One router's registry."""

    def __init__(self, state: RouterState, ticks_s: Callable[[], float] = time.monotonic) -> None:
        self.registry = CollectorRegistry()
        self._ticks_s = ticks_s
        self._first = _histogram(
            "cuvee_time_to_first_token_seconds",
            "From a call to its first token, with the time that it waited for its turn.",
            _FIRST_S,
            self.registry,
        )
        self._between = _histogram(
            "cuvee_inter_token_latency_seconds",
            "Between two tokens of a reply; tokens that come together share their time.",
            _TOKEN_S,
            self.registry,
        )
        self._whole = _histogram(
            "cuvee_e2e_request_latency_seconds",
            "From a call to its reply's end, for replies that ended as they should.",
            _REPLY_S,
            self.registry,
        )
        self.registry.register(_StateCollector(state))

    def clock(self, blend: str) -> ReplyClock:
        """For one reply of a blend that there is; its time begins now."""
        first, between, whole = (
            metric.labels(blend) for metric in (self._first, self._between, self._whole)
        )
        return ReplyClock(first, between, whole, self._ticks_s, began_s=self._ticks_s())


@dataclass(slots=True)
class ReplyClock:
    """Times one reply as its updates go by, and counts how often its speaker changes."""

    first: Histogram
    between: Histogram
    whole: Histogram
    ticks_s: Callable[[], float]
    began_s: float
    num_switches: int = 0
    _last_s: float | None = None
    _speaker: str = ""

    def see(self, update: Update) -> None:
        """An update is about to be passed on."""
        if update.tokens:
            self._tokens(update.tokens)
        if update.outcome is not None:
            self.whole.observe(self.ticks_s() - self.began_s)

    def _tokens(self, tokens: list[ReplyToken]) -> None:
        now_s, num = self.ticks_s(), len(tokens)
        if self._last_s is None:
            self.first.observe(now_s - self.began_s)
            num -= 1  # what came with the first one came at once
            self._last_s = now_s
        for _ in range(num):
            self.between.observe((now_s - self._last_s) / num)
        self._last_s = now_s
        for token in tokens:
            if token.member != self._speaker and not token.shares:
                self.num_switches += bool(self._speaker)
                self._speaker = token.member


class _StateCollector(Collector):
    """The router's counts and gauges, as they are when somebody asks."""

    def __init__(self, state: RouterState) -> None:
        self._state = state

    def collect(self) -> Iterator[Metric]:
        state = self._state
        yield _gauge("cuvee_num_requests_running", "Generations under way.", state.num_running)
        yield _gauge("cuvee_num_requests_waiting", "Generations in the queue.", state.num_waiting)
        yield _gauge(
            "cuvee_catch_up_backlog_tokens",
            "Tokens of replies under way that members with a seat have yet to read.",
            state.catch_up_backlog,
        )
        leases = GaugeMetricFamily(
            "cuvee_num_leases", "Leases that this router holds.", labels=["member"]
        )
        for member, num in state.num_leases.items():
            leases.add_metric([member], num)
        weights = GaugeMetricFamily(
            "cuvee_member_weight_ratio", "What the blend file says.", labels=["blend", "member"]
        )
        for blend, by_member in state.weights.items():
            for member, weight in by_member.items():
                weights.add_metric([blend, member], weight)
        yield from (leases, weights, *_of_blends(state.tally.all()), _failures(state.tally))


_BY_BLEND: tuple[tuple[str, str, Callable[[BlendTally], float]], ...] = (
    ("cuvee_degraded_requests", "Replies that went on without a member.", lambda t: t.num_degraded),
    (
        "cuvee_replica_takeovers",
        "Leases taken anew because a replica was lost.",
        lambda t: t.num_takeovers,
    ),
    ("cuvee_speaker_switches", "Changes of speaker within replies.", lambda t: t.num_switches),
)
_BY_MEMBER: tuple[tuple[str, str, Callable[[BlendTally], Mapping[str, int]]], ...] = (
    ("cuvee_generation_tokens", "Tokens drawn, by who drew them.", lambda t: t.drawn),
    ("cuvee_prompt_tokens", "Tokens of prompts, in each member's own.", lambda t: t.prompt),
    ("cuvee_cached_tokens", "Of what members read, found in their caches.", lambda t: t.cached),
    (
        "cuvee_catch_up_tokens",
        "Tokens fed to members beyond the prompt and what they drew.",
        lambda t: t.caught_up,
    ),
    ("cuvee_draft_tokens", "Tokens drafted for others to decide on.", lambda t: t.drafted),
    ("cuvee_draft_accepted_tokens", "Tokens drafted that stood.", lambda t: t.accepted),
    ("cuvee_leases_granted", "Leases that replies have had.", lambda t: t.leases),
)


def _of_blends(tallies: Mapping[str, BlendTally]) -> Iterator[Metric]:
    done = CounterMetricFamily(
        "cuvee_request_success", "Replies that ended.", labels=["blend", "finished_reason"]
    )
    for blend, tally in tallies.items():
        for reason, num in tally.finished.items():
            done.add_metric([blend, reason], num)
    yield done
    for name, words, count in _BY_BLEND:
        family = CounterMetricFamily(name, words, labels=["blend"])
        for blend, tally in tallies.items():
            family.add_metric([blend], count(tally))
        yield family
    for name, words, counts in _BY_MEMBER:
        family = CounterMetricFamily(name, words, labels=["blend", "member"])
        for blend, tally in tallies.items():
            for member, num in counts(tally).items():
                family.add_metric([blend, member], num)
        yield family


def _failures(tally: Tally) -> Metric:
    family = CounterMetricFamily(
        "cuvee_request_failure", "Replies that did not end as they should.", labels=["reason"]
    )
    for reason, num in tally.failures.items():
        family.add_metric([reason], num)
    return family


def _gauge(name: str, words: str, value: float) -> Metric:
    return GaugeMetricFamily(name, words, value=value)


def _histogram(
    name: str, words: str, buckets: tuple[float, ...], registry: CollectorRegistry
) -> Histogram:
    return Histogram(name, words, ["blend"], buckets=buckets, registry=registry)
