"""What the router does, whatever protocol asks for it."""

from __future__ import annotations

import logging
import secrets
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from weakref import WeakSet

from cluster.access.caller import current_caller
from cluster.engine.types import SamplingParams
from cluster.members.base import (
    Form,
    Member,
    Prompt,
    SequenceStart,
)
from cluster.members.metered import MeteredMember
from cluster.rankers.base import Ranker
from cluster.router.admission import Admission
from cluster.router.answers import Score, Start, Update
from cluster.router.blends import ServedBlend, blend_weights, overridden
from cluster.router.checks import check_prompt_renders, check_revision
from cluster.router.coordinator import Generation
from cluster.router.measuring import measure
from cluster.router.metrics import RouterMetrics
from cluster.router.on_each import on_each
from cluster.router.plan import make_plan
from cluster.router.proposals import Panel, proposer_weights
from cluster.router.ranking import Ranking
from cluster.router.replies import choose, fuse
from cluster.router.requests import GenerationRequest, ScoreRequest, check_prompt
from cluster.router.served import Served
from cluster.router.tally import Tally
from cluster.spec import (
    ChooseSpec,
    ClusterSpec,
    FrozenMapping,
    FuseSpec,
    RouteSpec,
)

logger = logging.getLogger(__name__)


class Router:
    """Serves the blends of one spec over the given members and rankers."""

    def __init__(
        self,
        spec: ClusterSpec,
        members: Mapping[str, Member],
        rankers: Mapping[str, Ranker] = FrozenMapping({}),
    ) -> None:
        self.tally = Tally()
        self.metrics = RouterMetrics(self)
        self._held: Counter[str] = Counter()
        self._under_way: WeakSet[Generation] = WeakSet()
        self._began_s = time.monotonic()
        self._admission = Admission(time.monotonic)
        self._served = Served(spec, members, rankers)

    @property
    def num_running(self) -> int:
        """Generations under way."""
        return self._admission.num_running

    @property
    def num_waiting(self) -> int:
        """Generations that wait for their turn."""
        return self._admission.num_waiting

    @property
    def num_active(self) -> int:
        """Generations under way or waiting."""
        return self.num_running + self.num_waiting

    @property
    def num_leases(self) -> Mapping[str, int]:
        """Leases held now, by member."""
        return self._held

    @property
    def catch_up_backlog(self) -> int:
        """Tokens of replies under way that members have yet to read."""
        return sum(generation.backlog for generation in self._under_way)

    @property
    def weights(self) -> Mapping[str, Mapping[str, float]]:
        """What the blend file says of each blend whose members have weights."""
        blends = self.spec.blends.items()
        return {name: blend.weights for name, blend in blends if blend.weights}

    @property
    def uptime_s(self) -> float:
        """Seconds since it was made."""
        return time.monotonic() - self._began_s

    def member(self, name: str) -> Member:
        """A member of the blend file."""
        return self._served.members[name]

    @property
    def spec(self) -> ClusterSpec:
        """What is served now."""
        return self._served.spec

    async def learn_members(self) -> None:
        """Ask every member once what it is, retrying for ever those that are not there yet."""
        await self._served.learn()

    async def reconfigure(
        self,
        spec: ClusterSpec,
        members: Mapping[str, Member],
        rankers: Mapping[str, Ranker] = FrozenMapping({}),
    ) -> None:
        """Serve another spec from the moment on that all its models are known.

        Until then the old one is served. Replies under way keep their plan and their members.
        """
        served = Served(spec, members, rankers)
        served.take_over(self._served)
        await served.learn()
        self._served.is_over = True
        self._served = served

    @property
    def ready_blends(self) -> list[str]:
        """Blends that are served: their members are known, and may be blended."""
        return self._served.ready_blends

    @property
    def knows_all_members(self) -> bool:
        """Whether every blend is decided: served, or refused for good."""
        return self._served.knows_all

    def blend(self, name: str) -> ServedBlend:
        """A served blend; the empty name means the default one."""
        return self._served.blend(name)

    async def generate(
        self, request: GenerationRequest, time_left_s: float | None = None
    ) -> AsyncGenerator[Update, None]:
        """Write one reply; the first update has its start, the last one the outcome.

        `time_left_s`: until the caller's deadline, for who would have to wait longer to begin.
        """
        given = request.sampling.seed
        seed = secrets.randbits(63) if given is None else given
        clock = self.metrics.clock(self.blend(request.blend).name)
        with self.tally.telling_failures():
            async with self._admitted(request.blend, time_left_s) as (blend, members):
                if request.resumption is not None:
                    check_revision(blend, request.resumption)
                async with aclosing(await self._updates(request, blend, members, seed)) as updates:
                    yield Update(start=Start(seed, blend.name, blend.revision))
                    async for update in updates:
                        clock.see(update)
                        if update.outcome is not None:
                            self.tally.add(update.outcome, clock.num_switches)
                        yield update

    async def _updates(
        self,
        request: GenerationRequest,
        blend: ServedBlend,
        members: Mapping[str, Member],
        seed: int,
    ) -> AsyncGenerator[Update, None]:
        """The reply that the blend's method gives; refuses what it cannot do."""
        spec, limits = overridden(blend, request.overrides), self.spec.limits
        is_pinned = request.overrides.member is not None
        if not is_pinned and isinstance(spec, ChooseSpec | FuseSpec):
            panel = Panel(request, blend, spec, seed, limits, members)
            weights = proposer_weights(spec, request.overrides)
            waits = spec.on_member_loss == "wait"
            ranking = Ranking(weights, members, self._served.rankers, self.spec, waits=waits)
            if isinstance(spec, ChooseSpec):
                return choose(panel, ranking, spec, request.prompt, list(weights))
            return fuse(panel, ranking, spec, request.prompt, seed)
        decided = await self._decided(blend, request)
        plan = make_plan(request, blend, limits, seed, decided)
        generation = Generation(plan, members, limits.lease_timeout_s)
        self._under_way.add(generation)
        return generation.updates()

    async def score(self, request: ScoreRequest, time_left_s: float | None = None) -> Score:
        """Measure a continuation under every member that takes part, and under the blend."""
        async with self._admitted(request.blend, time_left_s) as (blend, members):
            decided = await self._decided(blend, request)
            return await measure(request, blend, members, self.spec.limits, decided)

    async def _decided(
        self, blend: ServedBlend, request: GenerationRequest | ScoreRequest
    ) -> dict[str, float] | None:
        """The weights of a gate that reads the prompt alone, if the blend has one."""
        spec, overrides = overridden(blend, request.overrides), request.overrides
        if overrides.member or not (isinstance(spec, RouteSpec) and spec.decides_once):
            return None
        prior = blend_weights(spec, overrides)
        return await self._served.gates.weights(blend, spec, prior, request.prompt)

    async def count_tokens(self, blend_name: str, prompt: Prompt) -> dict[str, tuple[int, int]]:
        """By member: the prompt's tokens, and the most that member can hold."""
        check_prompt(prompt)
        start = SequenceStart(
            prompt=prompt,
            form=Form.TOKEN_IDS,
            sampling=SamplingParams(),
            seed=0,
            prefill=False,
        )
        async with self._admitted(blend_name) as (blend, members):
            check_prompt_renders(prompt, list(blend.infos.values()))
            counting = {name: members[name] for name in blend.infos}
            found = await on_each(counting, start, None, self.spec.limits.lease_timeout_s)
        return {
            name: (found[name].num_prompt_tokens, info.max_context)
            for name, info in blend.infos.items()
        }

    @asynccontextmanager
    async def _admitted(
        self, blend_name: str, time_left_s: float | None = None
    ) -> AsyncIterator[tuple[ServedBlend, Mapping[str, Member]]]:
        """In its turn: the blend as it is then, and members who charge the caller's key."""
        self.blend(blend_name)  # what there is not need not wait
        limits, costs = self.spec.limits, {n: m.cost for n, m in self.spec.members.items()}
        admitted = self._admission.admitted(current_caller.get(), limits, costs, time_left_s)
        async with admitted as bill:
            served = self._served
            metered = {
                name: MeteredMember(member, bill.add, self._held)
                for name, member in served.members.items()
            }
            yield served.blend(blend_name), metered
