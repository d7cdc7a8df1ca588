"""The cheapest settings under which streams are fast enough: all of a small grid are tried."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product

from cluster.spec import BlendSpec, MemberSpec
from deployments.simulation.loop import RAY_LOOK_S, Course, Delays, Load, Settings, simulate

SHARE_IN_TIME = 0.95  # of all stream time
_PACES = ((5, 0), (10, 5), (20, 10))  # window_s, upscale_delay_s
_PATIENCES = (120, 300, 900)  # downscale_delay_s
_NUM_STEPS = 5  # of min_replicas, from what few streams need to what many do


@dataclass(frozen=True, slots=True)
class Advice:
    """What to write for one member, and what it is expected to be like."""

    member: str
    share: float  # of all streams' time that it works
    settings: Settings
    slowness: float  # that 95 % of stream time stays below
    mean_pods: float
    most_pods: int  # if it were always ready for many
    num_started: int  # replicas, in two turns of the load
    is_enough: bool  # whether it is as fast as asked
    reaction_s: float  # from more streams to one more ready replica, where a node must come


def shares_of(blend: BlendSpec) -> dict[str, float]:
    """How much of each stream's time each member works: all of it where all draw every token."""
    weights = blend.weights
    if blend.draws_together or not weights:
        return dict.fromkeys(blend.members, 1.0)
    return dict(weights)


def advise(
    members: Mapping[str, MemberSpec],
    shares: Mapping[str, float],
    load: Load,
    delays: Delays,
    max_slowness: float,
) -> Iterator[Advice]:
    """For each member that works at all, the fewest pods that are fast enough, or the fastest."""
    for name, share in shares.items():
        if share > 0:
            yield _advise(name, share, _target_of(members[name]), load, delays, max_slowness)


def _target_of(member: MemberSpec) -> float:
    return member.autoscaling.target_leases if member.autoscaling else 8.0


def _advise(
    name: str, share: float, target: float, load: Load, delays: Delays, max_slowness: float
) -> Advice:
    tried: list[tuple[Settings, Course]] = [
        (settings, simulate(load, share, settings, delays))
        for settings in _grid(share, target, load, delays)
    ]

    def rank(found: tuple[Settings, Course]) -> tuple[float, ...]:
        settings, course = found
        slowness = course.slowness_of(SHARE_IN_TIME)
        is_enough = slowness <= max_slowness
        # Of those that are alike, the calmer: fewer starts, longer windows.
        alike = (course.pod_s, course.num_started, -settings.window_s, settings.downscale_delay_s)
        return (0.0, *alike) if is_enough else (1.0, slowness, *alike)

    settings, course = min(tried, key=rank)
    slowness = course.slowness_of(SHARE_IN_TIME)
    return Advice(
        member=name,
        share=share,
        settings=settings,
        slowness=slowness,
        mean_pods=course.pod_s / len(course.replicas),
        most_pods=settings.max_replicas,
        num_started=course.num_started,
        is_enough=slowness <= max_slowness,
        reaction_s=reaction_s(settings, delays),
    )


def reaction_s(settings: Settings, delays: Delays) -> float:
    """The links one after the other; the window counts half, for a load that jumps."""
    kubernetes_s = delays.pod_s + (0 if delays.num_spare_pods else delays.node_s)
    serve_s = settings.window_s / 2 + settings.upscale_delay_s
    return serve_s + RAY_LOOK_S / 2 + kubernetes_s + delays.replica_s


def _grid(share: float, target: float, load: Load, delays: Delays) -> Iterator[Settings]:
    few, many = (max(1, math.ceil(n * share / target)) for n in (load.few, load.many))
    step = max(1, math.ceil((many - few) / _NUM_STEPS))
    least = [*range(few, many, step), many]
    # An empty pod stays at least as long as it takes to bring one: or it goes as it is wanted.
    node_idle_s = max(60, delays.pod_s + delays.node_s)
    for num_least, (window_s, up_s), down_s in product(least, _PACES, _PATIENCES):
        # One more than many need: a decision aims at full use, and the fluid leaves no reserve.
        most = max(num_least, many + 1)
        yield Settings(num_least, most, target, window_s, up_s, down_s, node_idle_s)
