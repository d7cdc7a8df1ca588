"""A reply read with a clock, and a fault in the middle of it."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from benchmarks.faults.faults import Fault, Notice
from benchmarks.faults.site import STRUCK, Site, Spot
from cluster.client import Client
from cluster.client.blocking import Stream
from cluster.client.replies import Piece

NUM_TOKENS = 800
STRIKE_AT = 40  # tokens

_PROMPT = "It is a truth"
_LOST = "was lost"  # as the router's log says it
_TICK_S = 0.002


@dataclass(frozen=True, slots=True)
class Timed:
    """A reply and when its pieces came, in seconds of one clock."""

    said: tuple[tuple[str, bytes], ...]  # by whom, what
    arrivals_s: tuple[float, ...]  # of each piece after the first STRIKE_AT tokens
    num_leases: int  # of the struck member
    num_streams: int


@dataclass(frozen=True, slots=True)
class Wait:
    """What a reader of one reply saw of one fault."""

    noticed_s: float | None  # after the fault, by whoever notices this one
    next_token_s: float | None  # from the fault to the first piece after it was noticed
    longest_s: float  # between two pieces, from the fault to that piece, or to the reply's end
    undisturbed_s: float  # the longest wait of the same reply without a fault


class Watch:
    """Notes when something becomes so, from now on."""

    def __init__(self, is_so: Callable[[], bool]) -> None:
        self.seen_s: float | None = None
        self._is_so = is_so
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Look no more."""
        self._is_over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._is_over.wait(_TICK_S):
            if self._is_so():
                self.seen_s = time.perf_counter()
                return


def undisturbed(client: Client, seed: int) -> Timed:
    """The reply as it should be."""
    with _stream(client, seed) as stream:
        return _read_on(stream, [next(stream)])


def struck(client: Client, site: Site, fault: Fault, twin: Timed, seed: int) -> tuple[Wait, Spot]:
    """The same reply with a fault in it; asserts that it is the same, and that the fault struck."""
    while True:  # until the reply is where this fault can strike it
        with _stream(client, seed) as stream:
            pieces = [next(stream)]
            while sum(len(piece.tokens) for piece in pieces) < STRIKE_AT:
                pieces.append(next(stream))
            spot = site.spot()
            if fault.on_second_node and spot.replica.node_id != site.second_node:
                continue
            watch = Watch(_noticing(fault, site, spot, stream))
            striking = threading.Thread(target=fault.strike, args=(site, spot))
            struck_s = time.perf_counter()
            striking.start()
            timed = _read_on(stream, pieces)
            watch.end()
            assert not striking.is_alive(), f"{fault.name} took longer than the reply"
            break
    assert timed.said == twin.said, f"{fault.name}: seed {seed} said something else"
    assert (timed.num_streams > 1) == (fault.notice is Notice.CLIENT), (
        f"{timed.num_streams} streams"
    )
    is_taken_over = fault.notice is Notice.ROUTER
    assert (timed.num_leases > 1) == is_taken_over, f"{fault.name}: {timed.num_leases} leases"
    longest_twin_s = longest_wait_s(twin.arrivals_s, twin.arrivals_s[0], math.inf)
    return wait_of(timed.arrivals_s, struck_s, watch.seen_s, longest_twin_s), spot


def wait_of(
    arrivals_s: Sequence[float], struck_s: float, seen_s: float | None, undisturbed_s: float
) -> Wait:
    """From the moments of the pieces, of the fault, and of its being noticed.

    Pieces that came while the fault was prepared are read after it, all at once.
    """
    if seen_s is None:
        longest_s = longest_wait_s((struck_s, *arrivals_s), struck_s, math.inf)
        return Wait(None, None, longest_s, undisturbed_s)
    next_s = next(time_s for time_s in arrivals_s if time_s > seen_s)
    longest_s = longest_wait_s((struck_s, *arrivals_s), struck_s, next_s)
    return Wait(seen_s - struck_s, next_s - struck_s, longest_s, undisturbed_s)


def longest_wait_s(arrivals_s: Sequence[float], from_s: float, to_s: float) -> float:
    """The longest time without a piece, of those that overlap the time given."""
    waits = [wait for wait in pairwise(arrivals_s) if wait[1] > from_s and wait[0] < to_s]
    return max(end_s - begin_s for begin_s, end_s in waits)


def _stream(client: Client, seed: int) -> Stream:
    return client.stream(
        _PROMPT, blend="tokens", seed=seed, max_tokens=NUM_TOKENS, ignore_eos=True, timeout_s=120
    )


def _read_on(stream: Stream, pieces: list[Piece]) -> Timed:
    """The rest of a reply, after what was read of it."""
    arrivals_s = []
    num_tokens = sum(len(piece.tokens) for piece in pieces)
    for piece in stream:
        pieces.append(piece)
        num_tokens += len(piece.tokens)
        if num_tokens >= STRIKE_AT:
            arrivals_s.append(time.perf_counter())
    assert stream.outcome is not None, "a stream without an error ends with its outcome"
    said = tuple((token.member, token.bytes) for piece in pieces for token in piece.tokens)
    leases = {usage.member: usage.leases for usage in stream.outcome.usage.members}
    return Timed(said, tuple(arrivals_s), leases.get(STRUCK, 0), stream.num_streams)


def _noticing(fault: Fault, site: Site, spot: Spot, stream: Stream) -> Callable[[], bool]:
    """Whether this fault has been noticed by now, by who is to notice it."""
    if fault.notice is Notice.CLIENT:
        return lambda: stream.num_streams > 1
    if fault.notice is Notice.NOBODY:
        return lambda: False
    (log,) = site.log_folder.glob(f"worker-*-{spot.router.pid}.err")
    seen_bytes = log.stat().st_size
    return lambda: _LOST in _tail(log, seen_bytes)


def _tail(file: Path, begin_bytes: int) -> str:
    with file.open("rb") as opened:
        opened.seek(begin_bytes)
        return opened.read().decode(errors="replace")
