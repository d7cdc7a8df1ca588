"""What other threads ask of the engine, under one lock, until its next step takes it in."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from cluster.engine.job import check_work
from cluster.engine.types import Output, Work
from cluster.errors import InvalidRequest, NotFound


@dataclass(slots=True)
class _Sequence:
    ids: list[int] = field(default_factory=list)  # changed by the engine's step alone, while busy
    busy: bool = False  # a work was submitted and has not ended


@dataclass(slots=True)
class Requests:
    """What came in since the last step."""

    works: list[tuple[Work, list[int]]]  # with their sequences' ids
    cancelled: list[int]  # sequences whose work is to end
    closed: list[int]


class Inbox:
    """Sequences that are open, and requests about them. Every method is safe on any thread."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._lock = threading.Lock()
        self._sequences: dict[int, _Sequence] = {}
        self._num_opened = 0
        self._num_busy = 0
        self._works: list[Work] = []
        self._cancelled: set[int] = set()
        self._closed: list[int] = []

    def open(self) -> int:
        with self._lock:
            self._num_opened += 1
            self._sequences[self._num_opened] = _Sequence()
            return self._num_opened

    def submit(self, work: Work) -> None:
        with self._lock:
            sequence = self._get(work.sequence)
            if sequence.busy:
                message = f"sequence {work.sequence} still has a work under way"
                raise InvalidRequest("SEQUENCE_BUSY", message, field="sequence")
            check_work(work, len(sequence.ids), self._vocab_size)
            sequence.busy = True
            self._num_busy += 1
            self._works.append(work)

    def cancel(self, sequence: int) -> None:
        with self._lock:
            if not self._is_closed(sequence) and self._get(sequence).busy:
                self._cancelled.add(sequence)

    def close(self, sequence: int) -> None:
        with self._lock:
            if self._is_closed(sequence):
                return
            self._num_busy -= self._get(sequence).busy
            del self._sequences[sequence]
            self._cancelled.discard(sequence)
            self._closed.append(sequence)

    def end(self, sequence: int) -> None:
        """The sequence's work is over; it takes another."""
        with self._lock:
            self._cancelled.discard(sequence)
            if sequence in self._sequences:
                self._sequences[sequence].busy = False
                self._num_busy -= 1

    def take(self) -> Requests:
        """Everything asked for since the last time; a closed sequence's works are gone with it."""
        with self._lock:
            works = [
                (work, self._sequences[work.sequence].ids)
                for work in self._works
                if work.sequence in self._sequences
            ]
            requests = Requests(works, list(self._cancelled), self._closed)
            self._works, self._closed = [], []
            return requests

    def of_open(self, outputs: list[Output]) -> list[Output]:
        """The outputs whose sequence was not closed meanwhile."""
        with self._lock:
            return [output for output in outputs if output.sequence in self._sequences]

    def ids(self, sequence: int) -> list[int]:
        with self._lock:
            return list(self._get(sequence).ids)

    def num_ids(self, sequence: int) -> int:
        with self._lock:
            return len(self._get(sequence).ids)

    def is_empty(self) -> bool:
        with self._lock:
            return not (self._works or self._closed)

    def num_open_and_busy(self) -> tuple[int, int]:
        with self._lock:
            return len(self._sequences), self._num_busy

    def _is_closed(self, sequence: int) -> bool:
        """Whether it was open once: whoever tidies up need not know who did so before."""
        return 0 < sequence <= self._num_opened and sequence not in self._sequences

    def _get(self, sequence: int) -> _Sequence:
        if sequence not in self._sequences:
            raise NotFound("SEQUENCE", f"sequence {sequence} is not open")
        return self._sequences[sequence]
