"""The engine's own thread: forward passes never run on the event loop."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from cluster.engine.types import Output, Work

if TYPE_CHECKING:
    from cluster.engine.engine import Engine

_log = logging.getLogger(__name__)


class EngineThread:
    """Steps an engine as long as it has work, and reports each step's outputs, on that thread."""

    def __init__(self, engine: Engine, report: Callable[[list[Output]], None]) -> None:
        self._engine = engine
        self._report = report
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
                outputs = self._engine.step()
            except Exception as error:
                _log.exception("an engine step failed")
                outputs = self._engine.abort(f"{type(error).__name__}: {error}")
            try:
                if outputs:
                    self._report(outputs)
            except Exception:
                _log.exception("outputs could not be reported")
