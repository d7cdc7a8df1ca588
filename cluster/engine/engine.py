"""The engine: many sequences, one model, one ragged forward pass per step.

`Engine.step` is synchronous and belongs to one thread; all else may be called from any thread and
takes effect at the next step. `EngineThread` runs the steps on a thread of their own.
"""

from __future__ import annotations

import logging

from torch import Tensor

from cluster.engine.base import Runner
from cluster.engine.inbox import Inbox
from cluster.engine.job import Job
from cluster.engine.passes import Found, draw_from, run_pass
from cluster.engine.pool import PagePool
from cluster.engine.prefixes import num_common
from cluster.engine.rank import rank
from cluster.engine.sampler import NO_TOKEN
from cluster.engine.schedule import Plan, Scheduler
from cluster.engine.types import (
    EngineCounts,
    EngineLoad,
    Output,
    Rank,
    Sample,
    TokenOutput,
    Work,
    WorkEnd,
)
from cluster.errors import CuveeError, trace_of

_log = logging.getLogger(__name__)


class Engine:
    """Carries out works on sequences; `cluster.engine.types` says what may be asked."""

    def __init__(
        self,
        runner: Runner,
        *,
        num_ids: int | None = None,
        max_batch_tokens: int = 512,
        min_shared_tokens: int = 8,
    ) -> None:
        """Only the first `num_ids` ids are tokens: embeddings are often padded beyond them."""
        self.counts = EngineCounts()
        self.vocab_size = min(runner.vocab_size, num_ids or runner.vocab_size)
        self._runner = runner
        self._pool = PagePool(
            runner.num_pages, runner.page_size, min_shared_tokens=min_shared_tokens
        )
        self._scheduler = Scheduler(runner, self._pool, self.counts, max_batch_tokens)
        self._inbox = Inbox(self.vocab_size)
        self._jobs: dict[int, Job] = {}  # by sequence, in order of arrival
        self._rows: dict[int, Tensor] = {}  # logits after a sequence's last id, if it was ranked
        self._num_begun = 0
        self._num_steps = 0
        self._num_riding = 0

    @property
    def max_context(self) -> int:
        return self._runner.max_context

    @property
    def is_alive(self) -> bool:
        """Whether works can still be carried out."""
        return self._runner.is_alive

    def open(self) -> int:
        """A new sequence, empty."""
        return self._inbox.open()

    def submit(self, work: Work) -> None:
        """Ask for a work. A sequence takes one at a time, until an output with its end is out."""
        self._inbox.submit(work)

    def cancel(self, sequence: int) -> None:
        """End the sequence's work, if there is one, within a step."""
        self._inbox.cancel(sequence)

    def close(self, sequence: int) -> None:
        """Forget the sequence; its work ends without an output."""
        self._inbox.close(sequence)

    def ids(self, sequence: int) -> list[int]:
        """The sequence's token ids so far."""
        return self._inbox.ids(sequence)

    def num_ids(self, sequence: int) -> int:
        return self._inbox.num_ids(sequence)

    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._jobs) or not self._inbox.is_empty()

    def load(self) -> EngineLoad:
        num_open, num_busy = self._inbox.num_open_and_busy()
        num_riding = min(self._num_riding, num_busy)
        pool = self._pool
        pages = pool.num_pages, pool.num_free_pages, pool.num_open_pages
        return EngineLoad(num_open, num_riding, num_busy - num_riding, *pages)

    # A step takes in what was submitted, cancelled and closed since the last one; lets the
    # scheduler choose chunks of the works under way; feeds them through the model in one ragged
    # pass; draws one token for each work that samples, or scores its targets; commits: new rows
    # to the pool, tokens to their sequences, each under its judge's verdict; and reports. A token
    # drawn is fed only when the next one is wanted. If a pass fails, so do the works in it, and
    # the engine goes on.
    def step(self) -> list[Output]:
        """Move every work that can move; gives what is new."""
        self._num_steps += 1
        outputs = self._take_requests()
        plan = self._scheduler.plan(self._jobs.values(), self._num_steps)
        outputs += [self._end_without_room(job) for job in plan.hopeless]
        try:
            jobs = [self._jobs[chunk.sequence] for chunk in plan.chunks]
            found = run_pass(self._runner, plan, jobs, self.vocab_size)
        except Exception as error:
            _log.error("a forward pass failed: %s", trace_of(error))
            outputs += self._give_up(plan, f"{type(error).__name__}: {error}")
        else:
            outputs += self._commit(plan, found)
        self._num_riding = sum(job.last_step == self._num_steps for job in self._jobs.values())
        return self._inbox.of_open(outputs)

    def abort(self, error: str) -> list[Output]:
        """Fail all works under way; the engine can go on with new ones."""
        outputs = self._take_requests()
        return self._inbox.of_open(outputs + self._give_up(Plan(), error))

    def shut_down(self) -> None:
        """End what the runner started; no step comes after."""
        self._runner.close()

    def check_integrity(self) -> None:
        """Assert what must hold between steps."""
        self._pool.check_integrity()
        for sequence, job in self._jobs.items():
            cached = self._pool.cached_ids(sequence)
            assert cached == job.ids[: len(cached)], sequence
            assert len(cached) < job.end, sequence
        assert not self._pool.pinned_sequences() - self._jobs.keys()

    def _take_requests(self) -> list[Output]:
        """Begin what was submitted, end what was cancelled, free what was closed."""
        requests = self._inbox.take()
        outputs = [output for work, ids in requests.works for output in self._begin(work, ids)]
        cancelled = [self._jobs[s] for s in requests.cancelled if s in self._jobs]
        outputs += [self._end(job, WorkEnd.CANCELLED) for job in cancelled]
        for sequence in requests.closed:
            self._jobs.pop(sequence, None)
            self._rows.pop(sequence, None)
            if self._pool.holds(sequence):
                if not self._runner.shares_rows:
                    self._scheduler.forget(sequence)
                self._pool.close(sequence)
        return outputs

    def _begin(self, work: Work, ids: list[int]) -> list[Output]:
        """Bring the sequence's ids up to date and cut its cache to what is still true of it."""
        pool, sequence, tokens = self._pool, work.sequence, list(work.tokens)
        if not pool.holds(sequence):
            pool.open(sequence)
        cached = pool.cached_ids(sequence)
        num_kept = min(len(cached), work.start) + num_common(cached[work.start :], tokens)
        row = self._rows.pop(sequence, None)
        has_news = ids[work.start :] != tokens
        ids[work.start :] = tokens
        self._num_begun += 1
        job = self._jobs[sequence] = Job(sequence, work.want, ids, self._num_begun)
        asks_before = job.num_scored or job.num_ranked > 1 or job.num_open
        is_known = row is not None and not (has_news or asks_before)
        if is_known and len(ids) < self._runner.max_context:
            assert row is not None
            match work.want:
                case Rank(with_state=False):
                    return self._rank(job, row[None], is_over=True)
                case Sample():
                    return [self._draw(job, row)]
        num_kept = min(num_kept, job.first_logit)
        if num_kept < len(ids):
            num_kept = self._runner.truncate(sequence, num_kept, ids[num_kept])
        pool.truncate(sequence, num_kept)
        if len(ids) + isinstance(work.want, Sample | Rank) > self._runner.max_context:
            return [self._end(job, WorkEnd.CONTEXT_FULL)]
        if job.end > pool.num_pages * pool.page_size:
            return [self._end_without_room(job)]
        return [self._end(job, WorkEnd.DONE)] if job.end == num_kept else []

    def _commit(self, plan: Plan, found: Found) -> list[Output]:
        """The pass went well: its rows are cached now, and its tokens are the sequences'."""
        outputs = []
        self.counts.forward_passes += bool(plan.chunks)
        for i, chunk in enumerate(plan.chunks):
            job = self._jobs[chunk.sequence]
            self._pool.commit(chunk.sequence, chunk.ids)
            is_over = chunk.start + len(chunk.ids) == job.end
            job.num_passes += 1
            job.num_processed += len(chunk.ids)
            self.counts.tokens_processed += len(chunk.ids)
            job.next_logit = max(job.next_logit, chunk.start + len(chunk.ids))
            job.scored += [token.logprob for token in found.scored.get(i, ())]
            job.targets += found.targets.get(i, ())
            if i in found.failed:
                outputs.append(self._fail(job, found.failed[i]))
            elif i in found.drawn:
                outputs.append(self._take(job, found.drawn[i]))
            elif i in found.rows:
                outputs += self._rank(job, found.rows[i], found.states.get(i), is_over=is_over)
            elif is_over:
                outputs.append(self._end(job, WorkEnd.DONE, job.targets))
        return outputs

    def _take(self, job: Job, drawn: list[tuple[int, TokenOutput]]) -> Output:
        """Tokens were drawn, more than one where some were drafted: their judge decides."""
        kept: list[TokenOutput] = []
        for at, token in drawn:
            self.counts.tokens_sampled += 1
            if token.token == NO_TOKEN:
                return self._end(job, WorkEnd.FAILED, error="the model's logits are not finite")
            has_draft = job.num_open > 0
            try:
                more, end = job.draw(at, token, self._runner.max_context)
            except Exception as error:
                return self._fail(job, error)
            kept += more
            if end is not None:
                if has_draft:  # what was fed of it behind this token is not the sequence's
                    num_true = min(len(job.ids) - len(more), self._pool.num_cached(job.sequence))
                    self._pool.truncate(job.sequence, num_true)
                return self._end(job, end, kept)
        return job.output(kept, None)

    def _draw(self, job: Job, row: Tensor) -> Output:
        """Draw from a row that was kept: no pass is needed for it."""
        try:
            return self._take(job, [(job.num_drawn, draw_from(row, job))])
        except Exception as error:
            return self._fail(job, error)

    def _rank(
        self, job: Job, rows: Tensor, states: Tensor | None = None, *, is_over: bool
    ) -> list[Output]:
        """Tell what is asked of the rows, and keep the last: more may be asked, or be drawn."""
        assert isinstance(job.want, Rank)
        if job.want.with_state and states is None:
            error = "this model's hidden states cannot be read: it keeps a cache of its own"
            return [self._end(job, WorkEnd.FAILED, error=error)]
        try:
            wants, masks = job.ranks(len(rows))
        except Exception as error:
            return [self._fail(job, error)]
        outputs = []
        for place, distribution in enumerate(rank(rows, wants, masks)):
            if distribution is None:
                return [self._end(job, WorkEnd.FAILED, error="the model's logits are not finite")]
            outputs.append(job.output([], None))
            outputs[-1].distribution = distribution
            outputs[-1].state = [] if states is None else states[place].float().tolist()
        if is_over:
            self._rows[job.sequence] = rows[-1].clone()
            outputs[-1].end = self._end(job, WorkEnd.DONE).end
        return outputs

    def _end(
        self, job: Job, end: WorkEnd, tokens: list[TokenOutput] | None = None, *, error: str = ""
    ) -> Output:
        """The work is over: its state becomes evictable, its sequence takes the next one."""
        del self._jobs[job.sequence]
        self._pool.unpin(job.sequence)
        self._inbox.end(job.sequence)
        return job.output(tokens or [], end, error)

    def _fail(self, job: Job, error: Exception) -> Output:
        """The work's own judge or mask raised; the other works go on."""
        output = self._end(job, WorkEnd.FAILED, error=f"{type(error).__name__}: {error}")
        if isinstance(error, CuveeError):
            output.cause = error
        else:
            _log.error("a judge or a mask failed: %s", trace_of(error))
        return output

    def _end_without_room(self, job: Job) -> Output:
        num_rows = self._pool.num_pages * self._pool.page_size
        error = (
            f"{len(job.ids)} tokens do not fit the cache of {num_rows}: kv_memory_bytes is small"
        )
        return self._end(job, WorkEnd.FAILED, error=error)

    def _give_up(self, plan: Plan, error: str) -> list[Output]:
        """Fail the plan's works, or all if it has none, and trust no row it was about to write."""
        failed = {chunk.sequence for chunk in plan.chunks} or set(self._jobs)
        outputs = []
        for sequence, job in list(self._jobs.items()):
            if self._pool.is_pinned(sequence) or sequence in failed:
                self._scheduler.forget(sequence)
            if sequence in failed:
                outputs.append(self._end(job, WorkEnd.FAILED, error=error))
        return outputs
