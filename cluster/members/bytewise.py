"""A sequence that tells the law of the next byte, pass by pass over the splits of the text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from cluster.blending.warping import Warp, log_normalised, warped
from cluster.distribution import Distribution, Logprobs
from cluster.engine import types as engine
from cluster.engine.types import Output, WorkEnd
from cluster.errors import InternalError
from cluster.members.base import Emit, MemberInfo, Rank, RunEnd, SequenceStart, Step, StepEvent
from cluster.members.opening import EngineFront, ReplicaSequence
from cluster.text.bytewise import END, Asks, ByteWalk
from cluster.text.member import MemberText


class ByteSequence(ReplicaSequence):
    """The reply's bytes, and what this member makes of them.

    The engine is asked about one split after another: it keeps what they have in common.
    """

    def __init__(
        self,
        member: MemberInfo,
        text: MemberText,
        engine: EngineFront,
        start: SequenceStart,
        emit: Emit,
        on_close: Callable[[int], object],
    ) -> None:
        super().__init__(member, text, engine, start, emit, on_close)
        self._reply = bytearray()
        self._walk = self._fresh_walk()
        self._asks: Asks | None = None  # of the step under way
        self._rank = Rank(0)
        self._news = StepEvent([])  # what the step has cost so far

    def _fresh_walk(self) -> ByteWalk:
        text = self._text
        return ByteWalk(text.byte_vocabulary, text.canonical.encode, self._start.min_share)

    def _begin_step(self, step: Step) -> None:
        if step.base > len(self._reply):
            message = f"step keeps {step.base} of {len(self._reply)} known"
            raise InternalError("TRANSCRIPT_GAP", message)
        if not isinstance(step.want, Rank) or step.want.with_state:
            raise InternalError("BYTES_ARE_RANKED", "of bytes, only the distribution can be asked")
        if step.base < len(self._reply):
            self._walk = self._fresh_walk()
        self._reply[step.base :] = step.text
        self._rank, self._news = step.want, StepEvent([])
        self._asks = self._walk.follow(bytes(self._reply))
        self._ask(None)

    def _ask(self, logprobs: Logprobs | None) -> None:
        """Let the walk go on until it needs a forward pass, or knows what follows."""
        assert self._asks is not None, "no step is under way"
        try:
            ids = next(self._asks) if logprobs is None else self._asks.send(logprobs)
        except StopIteration as done:
            self._end(RunEnd.COMPLETE, self._told(done.value))
        else:
            self._submit(0, list(ids), engine.Rank(None))

    def _go_on(self, output: Output) -> None:
        news = self._news
        news.num_passes += output.num_passes
        news.num_processed += output.num_processed
        news.num_cached += output.num_cached
        if output.end is WorkEnd.CANCELLED:
            self._end(RunEnd.CANCELLED)
        elif output.end is WorkEnd.CONTEXT_FULL:
            self._end(RunEnd.CONTEXT_FULL)
        elif output.distribution is not None:
            logprobs = np.full(self._text.vocabulary.size, -np.inf)
            logprobs[output.distribution.ids] = output.distribution.logprobs
            self._ask(logprobs)

    def _told(self, law: Distribution) -> Distribution:
        """The law of the next symbol as it was asked for."""
        sampling, logprobs = self._start.sampling, law.logprobs
        if self._rank.position < self._start.end_allowed_from:
            logprobs = logprobs.copy()
            logprobs[END] = -np.inf
            logprobs = log_normalised(logprobs)
        if self._rank.is_warped:
            warp = Warp(sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p)
            logprobs = warped(logprobs, warp)
        return replace(law, logprobs=logprobs)

    def _end(self, end: RunEnd, law: Distribution | None = None) -> None:
        self._asks = None
        self._news.end, self._news.distribution = end, law
        self._tell(self._news)
