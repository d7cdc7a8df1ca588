"""Who may begin now, who waits, and who is refused: one router's bounded, fair queue.

So many generations run at once; so many more may wait, for so long. Of those that wait, the next to
begin is the oldest of the key that was given least, by what its generations have cost the members,
over the key's weight: the virtual token counter of Sheng et al., Fairness in Serving Large Language
Models (2401.00588). A key that comes back after a rest begins where the least served one stands, so
that nobody saves up.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from cluster.access.caller import Caller, KeyLimits
from cluster.errors import DeadlineExceeded, Overloaded
from cluster.spec import LimitsSpec

_LEAST_RETRY_S = 0.1
_LONGEST_RETRY_S = 60.0
_MEMORY = 0.9  # how much of a running mean the past keeps at each new value


@dataclass(slots=True)
class _Mean:
    """A running mean; 0 before the first value."""

    value: float = 0.0
    num: int = 0

    def add(self, value: float) -> None:
        self.num += 1
        share = max(1 - _MEMORY, 1 / self.num)
        self.value += share * (value - self.value)


@dataclass(slots=True)
class _Account:
    """What one key has been given, and what it still may take."""

    served: float = 0.0  # cost over weight: the virtual counter
    num_held: int = 0  # generations under way or waiting
    left: float = math.inf  # of the cost per minute; below 0: in debt
    filled_at_s: float = 0.0
    waiting: deque[asyncio.Future[None]] = field(default_factory=deque)

    def refill(self, per_minute: float | None, now_s: float) -> None:
        """A minute's worth at most is kept."""
        if per_minute is None:
            self.left = math.inf
        elif math.isinf(self.left):
            self.left = per_minute
        else:
            gained = (now_s - self.filled_at_s) * per_minute / 60
            self.left = min(per_minute, self.left + gained)
        self.filled_at_s = now_s


@dataclass(frozen=True, slots=True)
class Bill:
    """Charges a generation's key as members work for it."""

    costs: Mapping[str, float]  # of a processed token, by member
    account: _Account
    weight: float

    def add(self, member: str, num_processed: int) -> None:
        """A member has processed so many tokens."""
        cost = num_processed * self.costs[member]
        self.account.served += cost / self.weight
        self.account.left -= cost


class Admission:
    """One router's generations, running and waiting."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.num_running = 0
        self._clock = clock
        self._accounts: dict[str, _Account] = {}
        self._durations_s = _Mean()

    @property
    def num_waiting(self) -> int:
        """How many wait for their turn."""
        return sum(len(account.waiting) for account in self._accounts.values())

    @asynccontextmanager
    async def admitted(
        self,
        caller: Caller,
        limits: LimitsSpec,
        costs: Mapping[str, float],
        time_left_s: float | None = None,
    ) -> AsyncIterator[Bill]:
        """Run a generation in its turn; raises Overloaded at once where there is no hope.

        `time_left_s`: until the caller's deadline; who could not begin by then is refused at once.
        """
        account = self._accounts.setdefault(caller.key_id, _Account())
        self._check_key(account, caller.limits)
        if not account.num_held:
            self._begin_where_others_stand(account)
        account.num_held += 1
        try:
            await self._turn(account, limits, time_left_s)
            began_s = self._clock()
            try:
                yield Bill(costs, account, caller.limits.weight)
            finally:
                self._durations_s.add(self._clock() - began_s)
                self.num_running -= 1
                self._call_next(limits)
        finally:
            account.num_held -= 1

    def _check_key(self, account: _Account, limits: KeyLimits) -> None:
        account.refill(limits.cost_per_minute, self._clock())
        if limits.max_concurrent is not None and account.num_held >= limits.max_concurrent:
            raise Overloaded(
                "KEY_CONCURRENCY",
                f"{account.num_held} generations of this key are under way or waiting; its limit "
                f"is {limits.max_concurrent}",
                retry_delay_s=self._retry_s(self._durations_s.value),
            )
        if limits.cost_per_minute is not None and account.left <= 0:
            retry_s = self._retry_s(-account.left * 60 / limits.cost_per_minute)
            raise Overloaded(
                "KEY_RATE",
                f"this key has used up its limit of {limits.cost_per_minute:g} tokens' cost a "
                "minute",
                retry_delay_s=retry_s,
            )

    def _begin_where_others_stand(self, account: _Account) -> None:
        others = [other.served for other in self._accounts.values() if other.num_held]
        account.served = max(account.served, min(others, default=0.0))

    async def _turn(self, account: _Account, limits: LimitsSpec, left_s: float | None) -> None:
        """Wait until it may begin; it then counts as running."""
        num_waiting = self.num_waiting
        if self.num_running < limits.max_concurrent_generations and not num_waiting:
            self.num_running += 1
            return
        wait_s = self._expected_wait_s(num_waiting, limits)
        if num_waiting >= limits.max_waiting_generations:
            raise Overloaded(
                "TOO_MANY_GENERATIONS",
                f"{self.num_running} generations are under way and {num_waiting} wait, the most "
                "this router takes",
                retry_delay_s=self._retry_s(wait_s),
            )
        if left_s is not None and wait_s > left_s:
            raise DeadlineExceeded(
                "DEADLINE_TOO_SHORT",
                f"{num_waiting} generations wait, for about {wait_s:.3g} s; the deadline is in "
                f"{left_s:.3g} s",
            )
        turn = asyncio.get_running_loop().create_future()
        account.waiting.append(turn)
        try:
            await asyncio.wait_for(asyncio.shield(turn), limits.max_wait_s)
        except BaseException as error:
            if turn.done():  # called in the same instant as it gave up
                self.num_running -= 1
                self._call_next(limits)
            else:
                account.waiting.remove(turn)
            if isinstance(error, TimeoutError):
                raise Overloaded(
                    "WAITED_TOO_LONG",
                    f"no generation's turn came within {limits.max_wait_s:g} s",
                    retry_delay_s=self._retry_s(wait_s),
                ) from None
            raise

    def _call_next(self, limits: LimitsSpec) -> None:
        """Let the oldest of the least served key begin, while there is room."""
        while self.num_running < limits.max_concurrent_generations:
            waiting = [account for account in self._accounts.values() if account.waiting]
            if not waiting:
                return
            least = min(waiting, key=lambda account: account.served)
            least.waiting.popleft().set_result(None)
            self.num_running += 1

    def _expected_wait_s(self, num_waiting: int, limits: LimitsSpec) -> float:
        """For one more: rooms come free one after another, at the pace of the past."""
        return (num_waiting + 1) * self._durations_s.value / limits.max_concurrent_generations

    @staticmethod
    def _retry_s(expected_s: float) -> float:
        return min(max(expected_s, _LEAST_RETRY_S), _LONGEST_RETRY_S)
