"""An engine without a model: it batches like the real one and waits as long as a pass would take.

Which token comes at a position is a fixed function of seed and position, so every replica of every
member draws the same, and a test knows what must arrive.
"""

from __future__ import annotations

import asyncio
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.pool.device import Timing
from cluster.distribution import Distribution
from cluster.engine.types import Output, Prefill, Rank, Sample, TokenOutput, Verdict, Work, WorkEnd
from cluster.errors import Unsupported
from cluster.randomness import Purpose, key, mix

_LOGPROB = -1.0
_NUM_LAWS = 64  # distributions that ranks are answered from


class TokenLaw:
    """What the simulated models say: words and letters, never the end of the turn."""

    def __init__(self, token_bytes: Sequence[bytes]) -> None:
        letters = frozenset(string.ascii_letters.encode() + b" ")
        self._ids = [i for i, data in enumerate(token_bytes) if data and letters.issuperset(data)]
        # Words are found with Zipf's law: a few are likely, and different members agree on most.
        likely = -np.log(np.arange(1, len(self._ids) + 1))
        noise = np.random.default_rng(0).normal(0.0, 1.0, (_NUM_LAWS, len(self._ids)))
        logits = likely + noise
        totals = np.log(np.exp(logits).sum(axis=1, keepdims=True))
        ids = np.asarray(self._ids, dtype=np.int64)
        self._laws = [Distribution(ids, row) for row in logits - totals]
        self._parts: dict[tuple[int, int], Distribution] = {}

    def token(self, seed: int, position: int) -> int:
        """The token at a position of the reply."""
        return self._ids[key(seed, Purpose.TOKEN, position) % len(self._ids)]

    def told(self, length: int, rank: Rank, salt: int) -> Distribution:
        """What a member tells of the token after `length` others; `salt` sets members apart."""
        index = mix(length * _NUM_LAWS + salt) % _NUM_LAWS
        if len(rank.ids):
            return self._laws[index].part(rank.num_top, rank.ids)
        found = self._parts.get((index, rank.num_top))
        if found is None:
            found = self._parts[index, rank.num_top] = self._laws[index].part(rank.num_top, ())
        return found


@dataclass(slots=True)
class PassCounts:
    """Exact totals, and how late the machine let passes end."""

    passes: int = 0
    sequences: int = 0  # that took part, summed over passes
    late_s: float = 0.0  # summed over passes
    work_s: float = 0.0  # simulated time of all passes

    def __iadd__(self, other: PassCounts) -> PassCounts:
        """Add another engine's."""
        self.passes += other.passes
        self.sequences += other.sequences
        self.late_s += other.late_s
        self.work_s += other.work_s
        return self


@dataclass(slots=True)
class _Sequence:
    length: int = 0  # tokens it has
    num_fed: int = 0  # of these, in the cache
    work: Work | None = None
    num_drawn: int = 0  # by the work
    is_cancelled: bool = False


class SimulatedEngine:
    """Carries out `EngineFront` with timers on the running event loop."""

    def __init__(
        self, timing: Timing, law: TokenLaw, salt: int, report: Callable[[list[Output]], None]
    ) -> None:
        self.counts = PassCounts()
        self.is_alive = True
        self._timing = timing
        self._law = law
        self._salt = salt
        self._report = report
        self._loop = asyncio.get_running_loop()
        self._num_opened = 0
        self._sequences: dict[int, _Sequence] = {}
        self._ready: dict[int, None] = {}  # sequences with a work, in the order they came
        self._timer: asyncio.Handle | None = None

    def open(self) -> int:
        """A new sequence."""
        self._num_opened += 1
        self._sequences[self._num_opened] = _Sequence()
        return self._num_opened

    def submit(self, work: Work) -> None:
        """Begin a work with the next pass; raises Unsupported for scores: they have no law."""
        if not isinstance(work.want, Sample | Rank | Prefill):
            raise Unsupported("SIMULATED", "a simulated engine draws and ranks; it scores no text")
        sequence = self._sequences[work.sequence]
        assert sequence.work is None, "one work of a sequence at a time"
        sequence.length = work.start + len(work.tokens)
        sequence.num_fed = min(sequence.num_fed, work.start)
        sequence.work, sequence.num_drawn = work, 0
        self._ready[work.sequence] = None
        self._wake()

    def cancel(self, sequence: int) -> None:
        """End the sequence's work with the pass under way."""
        found = self._sequences.get(sequence)
        if found is not None and found.work is not None:
            found.is_cancelled = True

    def close(self, sequence: int) -> None:
        """Forget the sequence."""
        self._sequences.pop(sequence, None)
        self._ready.pop(sequence, None)

    def stop(self) -> None:
        """Begin no more passes."""
        self.is_alive = False
        if self._timer is not None:
            self._timer.cancel()

    def _wake(self) -> None:
        """Begin a pass soon, so that all works of one message ride in it."""
        if self._timer is None and self.is_alive:
            self._timer = self._loop.call_soon(self._begin)

    def _begin(self) -> None:
        self._timer = None
        # Nothing new since a rank: its row is still there, and the answer takes no pass.
        self._tell({id: 0 for id in self._ready if not self._num_new(id)})
        fed = {id: self._num_new(id) for id in self._ready}
        if not fed:
            return
        for id in fed:
            self._sequences[id].num_fed = self._sequences[id].length
        pass_s = self._timing.pass_s(sum(fed.values()), len(fed))
        self.counts += PassCounts(passes=1, sequences=len(fed), work_s=pass_s)
        ends_s = self._loop.time() + pass_s
        self._timer = self._loop.call_at(ends_s, self._end, fed, ends_s)

    def _end(self, fed: dict[int, int], ends_s: float) -> None:
        self._timer = None
        self.counts.late_s += self._loop.time() - ends_s
        self._tell(fed)
        if self._ready:
            self._wake()

    def _num_new(self, id: int) -> int:
        return self._sequences[id].length - self._sequences[id].num_fed

    def _tell(self, fed: dict[int, int]) -> None:
        """Report what these sequences got, each for so many tokens fed."""
        outputs = []
        for id, num_fed in fed.items():
            sequence = self._sequences.get(id)  # it may have been closed meanwhile
            if sequence is not None and sequence.work is not None:
                output = self._output(sequence, sequence.work)
                output.num_passes, output.num_processed = int(num_fed > 0), num_fed
                outputs.append(output)
                if output.end is not None:
                    sequence.work, sequence.is_cancelled = None, False
                    del self._ready[id]
        if outputs:
            self._report(outputs)

    def _output(self, sequence: _Sequence, work: Work) -> Output:
        want = work.want
        if sequence.is_cancelled:
            return Output(work.sequence, end=WorkEnd.CANCELLED)
        if isinstance(want, Rank):
            told = self._law.told(sequence.length, want, self._salt)
            return Output(work.sequence, end=WorkEnd.DONE, distribution=told)
        if isinstance(want, Prefill):
            return Output(work.sequence, end=WorkEnd.DONE)
        assert isinstance(want, Sample)
        token = self._law.token(want.seed, want.first_position + sequence.num_drawn)
        verdict = want.judge(token)
        output = Output(work.sequence)
        if verdict is not Verdict.DROP_AND_STOP:
            output.tokens.append(TokenOutput(token, _LOGPROB))
            sequence.length += 1
            sequence.num_drawn += 1
        if verdict is not Verdict.KEEP:
            output.end = WorkEnd.DONE
        return output
