"""A generation's seats: one sequence on one replica of each member that takes part."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence

from cluster.errors import ReplicaLost, Unavailable
from cluster.members.base import Member
from cluster.members.seat import Seat
from cluster.router.checks import check_prompt_is_shared, check_same_member
from cluster.router.on_each import all_of
from cluster.router.plan import Plan
from cluster.router.requests import MemberUsage

MAX_LOSSES_WITHOUT_PROGRESS = 3  # a prompt that kills every replica it meets is not carried further


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
        """Lease every member that may speak, in one fixed order, then open them all at once.

        The order is by name for all blends, so that two generations never wait for each other. All
        but the first to speak process the prompt meanwhile.
        """
        in_order = sorted(speakers, key=lambda index: self._plan.members[index])
        for index in in_order:
            await self._lease(index)
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
            await self._lease(index)
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

    async def leave(self, keep: Collection[int] = ()) -> None:
        """Give everything back, or all but some; never fails."""
        leaving = [index for index in self._seats if index not in keep]
        await asyncio.gather(*(self._give_back(index) for index in leaving))

    async def _lease(self, index: int) -> None:
        name = self._plan.members[index]
        member, affinity = self._members[name], self._plan.affinity
        seat = Seat(await member.lease(self._lease_timeout_s, affinity))
        self._seats[index] = seat
        self.usage[index].leases += 1
        check_same_member(self._plan.blend.infos[name], seat.info)

    async def _open(self, index: int, *, prefill: bool) -> None:
        seat, is_read = self._seats[index], index in self._unread
        prefill = prefill or is_read
        await seat.open(self._plan.start(seat.info, prefill=prefill, score_prompt=is_read))

    async def _give_back(self, index: int) -> None:
        if seat := self._seats.pop(index, None):
            await seat.close()
            self.usage[index].seat += seat.usage
