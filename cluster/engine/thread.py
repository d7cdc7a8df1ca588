"""The engine's own thread: forward passes never run on the event loop."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from cluster.engine.types import EngineLoad, EngineTimes, Output, Work
from cluster.errors import trace_of

if TYPE_CHECKING:
    from cluster.engine.engine import Engine

_log = logging.getLogger(__name__)


class EngineThread:
    """Steps an engine as long as it has work, and reports each step's outputs, on that thread."""

    def __init__(
        self,
        engine: Engine,
        report: Callable[[list[Output]], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.times = EngineTimes()  # replaced as a whole, so that any thread may read it
        self._engine = engine
        self._report = report
        self._clock = clock
        self._wake = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="cuvee-engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End after the step under way; works that have not ended stay without an end."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join()
        self._engine.shut_down()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive() and self._engine.is_alive

    def load(self) -> EngineLoad:
        """How busy the engine is now."""
        return self._engine.load()

    def open(self) -> int:
        return self._engine.open()

    def submit(self, work: Work) -> None:
        self._engine.submit(work)
        self._wake_up()

    def cancel(self, sequence: int) -> None:
        self._engine.cancel(sequence)
        self._wake_up()

    def close(self, sequence: int) -> None:
        self._engine.close(sequence)
        self._wake_up()

    def _wake_up(self) -> None:
        with self._wake:
            self._wake.notify()

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._stopping or self._engine.has_work())
                if self._stopping:
                    return
            try:
                outputs = self._timed_step()
            except Exception as error:
                _log.error("an engine step failed: %s", trace_of(error))
                outputs = self._engine.abort(f"{type(error).__name__}: {error}")
            try:
                if outputs:
                    self._report(outputs)
            except Exception as error:
                _log.error("outputs could not be reported: %s", trace_of(error))

    def _timed_step(self) -> list[Output]:
        """A step; its time counts for every work that was under way when it began."""
        before, began_s = self._engine.load(), self._clock()
        try:
            return self._engine.step()
        finally:
            took_s, after = self._clock() - began_s, self._engine.load()
            num_works = before.num_running + before.num_waiting
            self.times += EngineTimes(took_s, num_works * took_s, after.num_waiting * took_s)
