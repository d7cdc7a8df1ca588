"""The engine's thread: it wakes for work, survives what goes wrong, and is gone when stopped."""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Iterator

import pytest

from cluster.engine.engine import Engine
from cluster.engine.thread import EngineThread
from cluster.engine.types import EngineTimes, Output, Work, WorkEnd

from .factories import greedy, make_fake_engine

TIMEOUT_S = 20


class Running:
    """An engine on its thread, and a queue of its outputs."""

    def __init__(self, engine: Engine) -> None:
        self.outputs: queue.Queue[Output] = queue.Queue()
        self.thread = EngineThread(engine, self.report)
        self.thread.start()

    def report(self, outputs: list[Output]) -> None:
        assert threading.current_thread().name == "cuvee-engine"
        for output in outputs:
            self.outputs.put(output)

    def end(self) -> Output:
        while True:
            output = self.outputs.get(timeout=TIMEOUT_S)
            if output.end:
                return output


@pytest.fixture
def running() -> Iterator[Running]:
    running = Running(make_fake_engine())
    yield running
    running.thread.stop()


def test_stop_leaves_no_thread(running: Running) -> None:
    running.thread.submit(Work(running.thread.open(), 0, [1], greedy(3)))
    assert running.end().end is WorkEnd.DONE
    running.thread.stop()
    assert "cuvee-engine" not in [thread.name for thread in threading.enumerate()]


def test_a_thread_never_started_can_be_stopped() -> None:
    EngineThread(make_fake_engine(), print).stop()


def test_works_are_carried_out_whenever_they_come(running: Running) -> None:
    sequences = [running.thread.open() for _ in range(3)]
    for _ in range(3):
        for sequence in sequences:
            running.thread.submit(Work(sequence, 0, [sequence], greedy(4)))
        assert {running.end().sequence for _ in sequences} == set(sequences)


def test_cancel_and_close_take_effect_within_a_step(running: Running) -> None:
    cancelled, closed = running.thread.open(), running.thread.open()
    for sequence in (cancelled, closed):
        running.thread.submit(Work(sequence, 0, [1], greedy(10_000)))
    running.thread.close(closed)
    running.thread.cancel(cancelled)
    output = running.end()
    assert (output.sequence, output.end) == (cancelled, WorkEnd.CANCELLED)


def test_a_step_that_fails_outright_fails_the_works_and_not_the_thread(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = running.thread._engine
    whole_plan = engine._scheduler.plan

    def broken_once(*args: object) -> object:
        monkeypatch.setattr(engine._scheduler, "plan", whole_plan)
        raise AssertionError("a defect")

    monkeypatch.setattr(engine._scheduler, "plan", broken_once)
    sequence = running.thread.open()
    running.thread.submit(Work(sequence, 0, [1], greedy(2)))
    output = running.end()
    assert (output.end, output.error) == (WorkEnd.FAILED, "AssertionError: a defect")
    running.thread.submit(Work(sequence, 0, [1], greedy(2)))
    assert running.end().end is WorkEnd.DONE


def test_a_report_that_fails_does_not_end_the_thread() -> None:
    reported: queue.Queue[Output] = queue.Queue()

    def report(outputs: list[Output]) -> None:
        for output in outputs:
            reported.put(output)
        raise ValueError("nobody listens")

    thread = EngineThread(make_fake_engine(), report)
    thread.start()
    thread.submit(Work(thread.open(), 0, [1], greedy(2)))
    ends = [reported.get(timeout=TIMEOUT_S).end for _ in range(2)]
    thread.stop()
    assert ends == [None, WorkEnd.DONE]


def test_times_count_the_steps_and_the_works_in_them() -> None:
    """A clock that ticks once at each look: every step takes one second."""
    ticks = itertools.count()
    engine = make_fake_engine(num_pages=4)
    ended: queue.Queue[Output] = queue.Queue()
    thread = EngineThread(
        engine,
        lambda outputs: [ended.put(output) for output in outputs if output.end] and None,
        clock=lambda: float(next(ticks)),
    )
    for first in (0, 20):  # the pool has room for one of them at a time
        thread.submit(Work(thread.open(), 0, range(first, first + 10), greedy(4)))
    thread.start()
    for _ in range(2):
        assert ended.get(timeout=TIMEOUT_S).end is WorkEnd.DONE
    thread.stop()
    num_steps = engine.counts.forward_passes
    assert num_steps == 8
    assert thread.times == EngineTimes(busy_s=8, working_s=4 * 2 + 4, waiting_s=4)


def test_an_idle_engine_has_no_times(running: Running) -> None:
    running.thread.open()
    assert running.thread.times == EngineTimes()
