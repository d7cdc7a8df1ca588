"""A deterministic member without a model, for tests of everything above the replica.

Its "model" draws the next byte from a fixed distribution that depends on the last byte, by the same
uniforms and the same judge as a real replica. So schedules, hand-overs, replays and attribution can
be tested in milliseconds; a text is right if and only if the transcript reached it unharmed.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

from cluster.engine.types import Verdict
from cluster.errors import CuveeError, ReplicaLost, Unavailable
from cluster.members.base import (
    Draw,
    Emit,
    Failed,
    MemberInfo,
    Opened,
    RunEnd,
    SequenceStart,
    Step,
    StepEvent,
    StepToken,
    Tokens,
)
from cluster.members.judge import RunJudge
from cluster.randomness import Purpose, uniform

_TOKEN_BYTES = [bytes([value]) for value in range(256)]


class ScriptedMember:
    """A source of leases on scripted replicas; counts what is held."""

    def __init__(self, name: str, alphabet: bytes, *, vocabulary: str = "bytes") -> None:
        self.info = MemberInfo(name, f"scripted:{name}", vocabulary, 4096, True)
        self.num_leases = 0
        self.num_leased = 0  # ever
        self.lose_after: list[int] = []  # tokens after which the next replicas die, in turn
        self.refuse: CuveeError | None = None  # what opening a sequence answers
        self.steps: list[Step] = []  # all steps received
        self._alphabet = alphabet

    @property
    def name(self) -> str:
        """Its name in the blend file."""
        return self.info.member

    @property
    def is_gone(self) -> bool:
        """Whether its replicas are said to be lost for good."""
        return self.lose_after[:1] == [-1]

    async def lease(self, timeout_s: float, affinity: str = "") -> ScriptedLease:
        """Hold a scripted replica."""
        await asyncio.sleep(0)
        self.num_leases += 1
        self.num_leased += 1
        lose_after = self.lose_after.pop(0) if self.lose_after else None
        if lose_after is not None and lose_after < 0:
            self.num_leases -= 1
            raise Unavailable("MEMBER_UNAVAILABLE", f"no replica of member {self.name!r}")
        return ScriptedLease(self, lose_after)

    def draw(self, last: int, chance: float) -> int:
        """The byte that a uniform picks after another byte."""
        weights = [1 + (7 * byte + 3 * last) % 5 for byte in self._alphabet]
        bounds = [w / sum(weights) for w in accumulate(weights)]
        return self._alphabet[min(bisect_right(bounds, chance), len(weights) - 1)]


class ScriptedLease:
    """A hold on a scripted replica, which is its own transport."""

    def __init__(self, member: ScriptedMember, lose_after: int | None) -> None:
        self.member = member
        self.num_left = lose_after  # tokens until the replica dies; None: it lives
        self._is_held = True

    @property
    def info(self) -> MemberInfo:
        """What is leased."""
        return self.member.info

    @property
    def transport(self) -> ScriptedLease:
        """How to reach it."""
        return self

    async def release(self) -> None:
        """Give it back."""
        if self._is_held:
            self.member.num_leases -= 1
        self._is_held = False

    async def tokens(self) -> Tokens:
        """All bytes; none ends a turn."""
        return Tokens(_TOKEN_BYTES, frozenset())

    def open(self, start: SequenceStart, emit: Emit) -> ScriptedSequence:
        """Begin a sequence."""
        if self.member.refuse is not None:
            emit(Failed(self.member.refuse))
        else:
            emit(Opened(len(start.prompt.text or "chat")))
        return ScriptedSequence(self, start, emit)


class ScriptedSequence:
    """A sequence whose state is the reply's bytes."""

    def __init__(self, lease: ScriptedLease, start: SequenceStart, emit: Emit) -> None:
        self._lease = lease
        self._start = start
        self._emit = emit
        self._reply: list[int] = []
        self._running: asyncio.Task[None] | None = None

    def step(self, step: Step) -> None:
        """Apply the news and draw."""
        assert step.base <= len(self._reply), "a gap in the transcript"
        self._lease.member.steps.append(step)
        self._reply[step.base :] = [*step.text, *step.token_ids]
        assert isinstance(step.want, Draw)
        self._running = asyncio.create_task(self._draw(step.want))

    def cancel(self) -> None:
        """End the running step."""
        if self._running is not None:
            self._running.cancel()
            self._emit(StepEvent([], RunEnd.CANCELLED))

    def close(self) -> None:
        """Forget the sequence."""
        if self._running is not None:
            self._running.cancel()

    async def _draw(self, draw: Draw) -> None:
        seed = self._start.seed
        judge = RunJudge(
            draw, seed=seed, token_bytes=_TOKEN_BYTES, end_ids=(), before=bytes(self._reply)
        )
        purpose = Purpose.RETAKE if draw.retake else Purpose.TOKEN
        position, verdict = draw.position, Verdict.KEEP
        while verdict is Verdict.KEEP:
            await asyncio.sleep(0)
            if self._lease.num_left == 0:
                self._emit(Failed(ReplicaLost("REPLICA_LOST", "the scripted replica died")))
                return
            last = self._reply[-1] if self._reply else 0
            token = self._lease.member.draw(last, uniform(seed, purpose, position))
            verdict = judge(token)
            tokens = []
            if verdict is not Verdict.DROP_AND_STOP:
                self._reply.append(token)
                tokens = [StepToken(token, _TOKEN_BYTES[token], -1.0)]
                if self._lease.num_left is not None:
                    self._lease.num_left -= 1
            is_over = verdict is not Verdict.KEEP
            self._emit(StepEvent(tokens, judge.end if is_over else None, 1, 1))
            position, purpose = position + 1, Purpose.TOKEN


def scripted_members(names: Sequence[str], alphabets: Sequence[bytes]) -> dict[str, ScriptedMember]:
    """Members of one vocabulary with an alphabet each."""
    return {
        name: ScriptedMember(name, alphabet)
        for name, alphabet in zip(names, alphabets, strict=True)
    }
