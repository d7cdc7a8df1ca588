"""How hard a replica's engine works, averaged between two looks at its totals. Pure."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from cluster.engine.types import EngineLoad, EngineTimes


@dataclass(frozen=True, slots=True)
class Pressure:
    """What scaling decides by; all but the last two are means over time."""

    busy: float  # share of the time in which the engine stepped
    working: float  # works under way: leases that the engine has something to do for
    waiting: float  # of those, the ones that did not ride in the step
    kv_fill: float  # share of the cache that open sequences hold, now
    leases: float  # held now

    def stats(self) -> dict[str, float]:
        """By name, as Ray Serve carries them."""
        return asdict(self)


def pressure_between(
    before: EngineTimes, after: EngineTimes, elapsed_s: float, load: EngineLoad, num_leases: int
) -> Pressure:
    """The pressure of the last `elapsed_s` seconds, above 0."""
    return Pressure(
        busy=(after.busy_s - before.busy_s) / elapsed_s,
        working=(after.working_s - before.working_s) / elapsed_s,
        waiting=(after.waiting_s - before.waiting_s) / elapsed_s,
        kv_fill=load.num_open_pages / load.num_pages,
        leases=num_leases,
    )
