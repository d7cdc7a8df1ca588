"""A member that counts what it processes for one caller, as it happens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from cluster.members.base import (
    Channel,
    Emit,
    Event,
    Lease,
    Member,
    MemberInfo,
    ReplicaState,
    SequenceStart,
    StepEvent,
    Tokens,
    Transport,
)

Count = Callable[[str, int], None]  # the member's name, and how many tokens it has processed


@dataclass(frozen=True, slots=True)
class MeteredMember:
    """The member, its leases counted."""

    member: Member
    count: Count
    held: Counter[str]  # leases by member, of all callers

    @property
    def name(self) -> str:
        """Its name in the blend file."""
        return self.member.name

    @property
    def is_gone(self) -> bool:
        """Whether it has no replica now."""
        return self.member.is_gone

    async def lease(self, timeout_s: float, affinity: str = "") -> MeteredLease:
        """Hold one of its replicas."""
        lease = await self.member.lease(timeout_s, affinity)
        self.held[self.name] += 1
        return MeteredLease(lease, self.count, self.held)

    async def replicas(self) -> list[ReplicaState]:
        """How each of its replicas is."""
        return await self.member.replicas()


@dataclass(frozen=True, slots=True)
class MeteredLease:
    """A lease and its own transport."""

    lease: Lease
    count: Count
    held: Counter[str]

    @property
    def info(self) -> MemberInfo:
        """What is leased."""
        return self.lease.info

    @property
    def transport(self) -> MeteredTransport:
        """How to reach it."""
        return MeteredTransport(self.lease.transport, self.lease.info.member, self.count)

    async def release(self) -> None:
        """Give it back, once."""
        self.held[self.lease.info.member] -= 1
        await self.lease.release()


@dataclass(frozen=True, slots=True)
class MeteredTransport:
    """Listens to the news of sequences on their way."""

    transport: Transport
    member: str
    count: Count

    def open(self, start: SequenceStart, emit: Emit) -> Channel:
        """Begin a sequence."""
        member, count = self.member, self.count

        def listen(event: Event) -> None:
            if isinstance(event, StepEvent):
                count(member, event.num_processed)
            emit(event)

        return self.transport.open(start, listen)

    async def tokens(self) -> Tokens:
        """The member's tokens."""
        return await self.transport.tokens()
