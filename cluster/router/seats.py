"""A generation's seats: one sequence on one replica of each member that takes part."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence

from cluster.errors import MemberGone, Overloaded, ReplicaLost, Unavailable
from cluster.members.base import Lease, Member
from cluster.members.seat import Seat
from cluster.router.answers import MemberUsage
from cluster.router.checks import check_prompt_is_shared, check_same_member
from cluster.router.on_each import all_of
from cluster.router.plan import Plan

MAX_LOSSES_WITHOUT_PROGRESS = 3  # a prompt that kills every replica it meets is not carried further
_GONE_POLL_S = 0.1
_PATIENCE_S = 0.5  # for a lease, with others in hand


class Seats:
    """Leases, opens, replaces and gives back seats, and adds up what they cost. By member index."""

    def __init__(self, plan: Plan, members: Mapping[str, Member], lease_timeout_s: float) -> None:
        self.usage = [MemberUsage(name) for name in plan.members]
        self._plan = plan
        self._members = members
        self._lease_timeout_s = lease_timeout_s
        self._seats: dict[int, Seat] = {}
        self._losses: dict[int, int] = {}  # in a row
        self._unread: set[int] = set()  # who is still to tell of the prompt

    async def sit_down(self, speakers: Collection[int], first: Collection[int]) -> None:
        """Lease every member that may speak, then open them all at once.

        All but the first to speak process the prompt meanwhile.
        """
        in_order = await self._lease_all(speakers)
        opened = await asyncio.gather(
            *(self._open(index, prefill=index not in first) for index in in_order),
            return_exceptions=True,
        )
        for index, error in zip(in_order, opened, strict=True):
            if isinstance(error, ReplicaLost):
                await self._give_back(index)
            elif isinstance(error, BaseException):
                raise error

    async def read_prompt(self, speakers: Collection[int]) -> list[Sequence[float]]:
        """Sit down; gives what each speaker thinks of the prompt, found as it processes it.

        Who is lost before it has told is replaced by another that reads the prompt anew.
        """
        self._unread = set(speakers)
        await self.sit_down(speakers, first=())
        read = dict(zip(speakers, await all_of(map(self._read, speakers)), strict=True))
        names = {self._plan.members[index]: digest for index, (digest, _) in read.items()}
        check_prompt_is_shared(names, self._plan.prompt)
        return [logprobs for _, logprobs in read.values()]

    async def _read(self, index: int) -> tuple[int, Sequence[float]]:
        while True:
            try:
                seat = await self.take(index)
                logprobs = await seat.prompt_logprobs()
            except ReplicaLost as error:
                await self.lose(index, error)
            else:
                self._unread.discard(index)
                return seat.prompt_digest, logprobs

    async def take(self, index: int) -> Seat:
        """The member's seat; a fresh one if the last was lost."""
        if index not in self._seats:
            await self._lease(index, self._lease_timeout_s)
            await self._open(index, prefill=False)
        return self._seats[index]

    def progress(self, index: int) -> None:
        """The seat is of use."""
        self._losses.pop(index, None)

    async def lose(self, index: int, error: ReplicaLost) -> None:
        """Leave a seat whose replica is gone; raises Unavailable when that happens too often."""
        await self._give_back(index)
        losses = self._losses[index] = self._losses.get(index, 0) + 1
        if losses > MAX_LOSSES_WITHOUT_PROGRESS:
            raise Unavailable(
                "MEMBER_UNAVAILABLE",
                f"member {self._plan.members[index]!r} lost {losses} replicas in a row on this "
                f"request; the last: {error.message}",
            ) from error

    @property
    def room(self) -> int:
        """How many tokens of the reply everybody who sits has room for."""
        rooms = (s.info.max_context - s.usage.prompt_tokens for s in self._seats.values())
        return min(rooms, default=0)

    def have_read(self, members: Collection[int]) -> bool:
        """Whether all of them have processed the prompt, and something of the reply."""
        return all(index in self._seats and self._seats[index].known > 0 for index in members)

    def know(self, index: int, known: int) -> None:
        """The member has so much of the reply that stands."""
        self._seats[index].known = known

    def forget(self, known: Mapping[int, int]) -> None:
        """Members that sit know no more than this of the reply."""
        for index, seat in self._seats.items():
            seat.known = min(seat.known, known.get(index, 0))

    def num_behind(self, length: int) -> int:
        """How much of a reply of this length members that sit have yet to read, all together."""
        return sum(max(0, length - seat.known) for seat in self._seats.values())

    async def leave(self, keep: Collection[int] = ()) -> None:
        """Give everything back, or all but some; never fails, whoever is cancelled meanwhile."""
        leaving = [index for index in self._seats if index not in keep]
        # A caller that has gone away is cancelled more than once, also in the middle of this.
        await asyncio.shield(asyncio.gather(*(self._give_back(index) for index in leaving)))

    async def _lease_all(self, speakers: Collection[int]) -> list[int]:
        """All or nothing, within one time limit; gives the order in which they were leased.

        The order is by name for all blends, so that two generations never wait for each other. Who
        holds some waits but a moment for the next: then it gives all back and waits for that one
        first, with nothing in its hands that another could use.
        """
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + self._lease_timeout_s
        in_order = sorted(speakers, key=lambda index: self._plan.members[index])
        while True:
            for place, index in enumerate(in_order):
                left_s = deadline_s - loop.time()
                try:
                    await self._lease(index, min(left_s, _PATIENCE_S) if place else left_s)
                except Overloaded:
                    await self.leave()
                    if not place or deadline_s - loop.time() <= _PATIENCE_S:
                        raise
                    in_order.insert(0, in_order.pop(place))
                    break
            else:
                return in_order

    async def _lease(self, index: int, timeout_s: float) -> None:
        name = self._plan.members[index]
        member, affinity = self._members[name], self._plan.affinity
        if self._plan.blend.spec.on_member_loss == "wait":
            lease = await member.lease(timeout_s, affinity)
        else:
            lease = await lease_unless_gone(member, timeout_s, affinity)
        seat = Seat(lease)
        self._seats[index] = seat
        check_same_member(self._plan.blend.infos[name], seat.info)

    async def _open(self, index: int, *, prefill: bool) -> None:
        seat, is_read = self._seats[index], index in self._unread
        self.usage[index].leases += 1
        prefill = prefill or is_read
        await seat.open(self._plan.start(seat.info, prefill=prefill, score_prompt=is_read))

    async def _give_back(self, index: int) -> None:
        if seat := self._seats.pop(index, None):
            await seat.close()
            self.usage[index].seat += seat.usage


async def lease_unless_gone(member: Member, timeout_s: float, affinity: str) -> Lease:
    """A lease like any other; raises MemberGone as soon as there is nobody to wait for."""
    leasing = asyncio.create_task(member.lease(timeout_s, affinity))
    try:
        while not leasing.done():
            if member.is_gone:
                words = f"member {member.name!r} has no replica left"
                raise MemberGone("MEMBER_UNAVAILABLE", words, member=member.name)
            await asyncio.wait({leasing}, timeout=_GONE_POLL_S)
        return leasing.result()
    finally:
        if not leasing.done():
            leasing.cancel()
            await asyncio.wait({leasing})
