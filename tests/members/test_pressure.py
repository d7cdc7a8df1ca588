"""Means between two looks at an engine's totals."""

from __future__ import annotations

from cluster.engine.types import EngineLoad, EngineTimes
from cluster.members.pressure import Pressure, pressure_between

LOAD = EngineLoad(
    num_sequences=9,
    num_running=1,
    num_waiting=0,
    num_pages=40,
    num_free_pages=38,
    num_open_pages=10,
)


def test_pressure_is_a_mean_over_the_time_that_has_passed() -> None:
    before = EngineTimes(busy_s=100, working_s=300, waiting_s=7)
    after = before + EngineTimes(busy_s=3, working_s=12, waiting_s=2)
    found = pressure_between(before, after, 4, LOAD, num_leases=9)
    assert found == Pressure(busy=0.75, working=3, waiting=0.5, kv_fill=0.25, leases=9)
    assert found.stats() == {
        "busy": 0.75,
        "working": 3,
        "waiting": 0.5,
        "kv_fill": 0.25,
        "leases": 9,
    }


def test_leases_that_the_engine_does_nothing_for_are_no_pressure() -> None:
    same = EngineTimes(busy_s=5, working_s=5)
    found = pressure_between(same, same, 2, LOAD, num_leases=9)
    assert (found.busy, found.working, found.waiting) == (0, 0, 0)
