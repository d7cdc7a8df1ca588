"""Leases as the replica keeps them: who may speak on its data-plane port, and until when."""

from __future__ import annotations

import asyncio
import hmac
import secrets
from dataclasses import dataclass, field

from cluster.errors import ReplicaLost
from cluster.members.base import MemberInfo
from cluster.members.opening import ReplicaSequence


@dataclass(frozen=True, slots=True)
class LeaseGrant:
    """The first thing a lease call answers: where the replica is and what to show there."""

    address: str  # host:port of the replica's exchange
    lease_id: str
    secret: bytes
    info: MemberInfo


@dataclass(slots=True, eq=False)
class HeldLease:
    """A live lease and the sequences opened under it."""

    id: str
    secret: bytes
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    sequences: set[ReplicaSequence] = field(default_factory=set)

    @property
    def has_room(self) -> bool:
        """Whether a sequence may be opened: a lease's room is that of one, at full length."""
        self.sequences = {sequence for sequence in self.sequences if sequence.is_open}
        return not self.sequences


def not_live() -> ReplicaLost:
    """Why a sequence cannot be opened, or go on."""
    return ReplicaLost("LEASE_NOT_LIVE", "the lease is not live")


class LeaseTable:
    """All live leases of one replica."""

    def __init__(self) -> None:
        self._live: dict[str, HeldLease] = {}

    def __len__(self) -> int:
        return len(self._live)

    def grant(self) -> HeldLease:
        """Begin a lease with a fresh secret."""
        lease = HeldLease(secrets.token_hex(8), secrets.token_bytes(32))
        self._live[lease.id] = lease
        return lease

    def find(self, lease_id: str, secret: bytes) -> HeldLease | None:
        """The live lease of that id, if the secret is its own."""
        lease = self._live.get(lease_id)
        if lease is None or not hmac.compare_digest(lease.secret, secret):
            return None
        return lease

    def end(self, lease: HeldLease) -> None:
        """End a lease and forget its sequences; ending it again does nothing."""
        self._live.pop(lease.id, None)
        for sequence in tuple(lease.sequences):
            sequence.lose(not_live())
        lease.sequences.clear()
        lease.ended.set()
