"""Who rides in the next forward pass, and with how many tokens.

All works under way are asked, up to a budget of tokens. Short extensions ride first, whoever
waited longest before the others; if there are long ones, a quarter of the budget is kept for
them, and they take what is left in chunks, in order of arrival. Before it is computed, a prefix
is looked for in the cache, and a work waits one step if another is computing the very page it
needs. A work that comes in must find room for all its tokens, and is pinned from then on; one
already in takes pages as it grows. Idle sequences make room, the least recently used first. If
nobody can move, the youngest gives up its pages and is computed again later, and one that is
stuck alone is hopeless. A newcomer that has found no room for long holds back younger ones, so
that a stream of small works cannot starve a large one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from cluster.engine.base import MAX_EXTENSION_TOKENS, Chunk, Runner
from cluster.engine.job import Job
from cluster.engine.pool import Copy, PagePool
from cluster.engine.types import EngineCounts

_MAX_PATIENCE_STEPS = 32  # for how long younger newcomers may go first


@dataclass(slots=True)
class Plan:
    """What one step does."""

    chunks: list[Chunk] = field(default_factory=list)
    copies: list[Copy] = field(default_factory=list)  # in this order, before the pass
    hopeless: list[Job] = field(default_factory=list)  # works that can never be carried out


class Scheduler:
    """Plans steps; hands out and takes back pages."""

    def __init__(
        self, runner: Runner, pool: PagePool, counts: EngineCounts, max_batch_tokens: int
    ) -> None:
        assert max_batch_tokens > 0
        self._runner = runner
        self._pool = pool
        self._counts = counts
        self._max_batch_tokens = max_batch_tokens
        self._copies: list[Copy] = []
        self._num_rides = 0

    def plan(self, jobs: Iterable[Job], step: int) -> Plan:
        """Chunks for the next pass: at least one, if there is a work that is not hopeless."""
        plan, waiting = Plan(), list(jobs)
        while waiting:
            plan.chunks = self._fill(waiting, step)
            if plan.chunks:
                break
            stuck = self._yield_pages(waiting)
            if stuck is not None:
                self._pool.unpin(stuck.sequence)  # the others may have its pages
                plan.hopeless.append(stuck)
                waiting.remove(stuck)
        plan.copies, self._copies = self._copies, []
        return plan

    def forget(self, sequence: int) -> None:
        """Drop a sequence's cached state."""
        self._pool.drop(sequence)
        self._runner.drop(sequence)

    def _fill(self, jobs: Sequence[Job], step: int) -> list[Chunk]:
        """One chunk for each work that can move, within the budget."""
        short: list[Job] = []
        long: list[Job] = []
        for job in jobs:
            num_left = job.end - self._pool.num_cached(job.sequence)
            (short if num_left <= MAX_EXTENSION_TOKENS else long).append(job)
        short.sort(key=lambda job: (job.turn, job.number))
        late = (j.number for j in jobs if step - (j.waits_since or step) > _MAX_PATIENCE_STEPS)
        last_newcomer = min(late, default=float("inf"))
        chunks: list[Chunk] = []
        in_work: set[int] = set()  # keys of pages that this pass computes
        budget = self._max_batch_tokens
        kept_for_long = budget // 4 if long else 0
        for jobs_of_kind, num_kept in ((short, kept_for_long), (long, 0)):
            for job in jobs_of_kind:
                is_newcomer = not self._pool.is_pinned(job.sequence)
                if budget <= num_kept or (is_newcomer and job.number > last_newcomer):
                    continue
                chunk = self._ride(job, budget - num_kept, in_work, step)
                if chunk is not None:
                    chunks.append(chunk)
                    budget -= len(chunk.ids)
                    self._num_rides += 1
                    job.turn, job.last_step, job.waits_since = self._num_rides, step, None
        return chunks

    def _ride(self, job: Job, max_tokens: int, in_work: set[int], step: int) -> Chunk | None:
        """The work's next chunk with its pages reserved, or None if it must wait."""
        pool, sequence = self._pool, job.sequence
        is_newcomer = not pool.is_pinned(sequence)
        pool.pin(sequence)
        next_page = None
        if self._runner.shares_rows and job.end - pool.num_cached(sequence) > 1:
            num_won, copies = pool.share(sequence, job.ids, min(job.first_logit, job.end - 1))
            self._copies += copies
            self._counts.tokens_shared += num_won
            job.num_cached += num_won
            next_page = pool.next_page_key(sequence, job.ids)
        start = pool.num_cached(sequence)
        num_left = job.end - start
        num_tokens = min(num_left, max_tokens)
        copies_or_none = None
        if next_page is None or next_page not in in_work:
            copies_or_none = pool.reserve(sequence, num_left)
            job.waits_since = job.waits_since or step
        self._note_evictions()
        if copies_or_none is None:
            if is_newcomer:
                pool.unpin(sequence)
            return None
        self._copies += copies_or_none
        if next_page is not None and start % pool.page_size + num_tokens >= pool.page_size:
            in_work.add(next_page)
        return job.make_chunk(start, num_tokens, pool.pages(sequence))

    def _yield_pages(self, jobs: Sequence[Job]) -> Job | None:
        """Nobody moved: the youngest running work gives up its pages, or one is hopeless."""
        running = [job for job in jobs if self._pool.is_pinned(job.sequence)]
        if not running:
            return jobs[0]
        if len(running) == 1:
            return running[0]
        youngest = max(running, key=lambda job: job.number)
        self.forget(youngest.sequence)
        youngest.turn = self._num_rides + 1  # after those it gave way to
        self._counts.evictions += 1
        return None

    def _note_evictions(self) -> None:
        for sequence in self._pool.evicted:
            self._runner.drop(sequence)
        self._counts.evictions += len(self._pool.evicted)
        self._pool.evicted.clear()
