"""Several replies at a time, from which one is chosen or written; stragglers are left behind."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace

from cluster.errors import CuveeError, InvalidRequest, Unsupported
from cluster.members.base import Member, Prompt
from cluster.randomness import Purpose, key
from cluster.router.answers import MemberUsage, Outcome, Proposal, ProposalState, ReplyToken
from cluster.router.blends import ServedBlend, blend_weights
from cluster.router.coordinator import Generation
from cluster.router.plan import Plan, make_plan
from cluster.router.requests import GenerationRequest, Overrides
from cluster.router.resumption import Resumption
from cluster.spec import ChooseSpec, LimitsSpec, ProposingSpec

_MOST_REPLIES = 1 << 8  # of a member in a round: part of what makes seeds repeatable


class Panel:
    """The members of one request that write whole replies, and what these have cost."""

    def __init__(
        self,
        request: GenerationRequest,
        blend: ServedBlend,
        spec: ProposingSpec,
        seed: int,
        limits: LimitsSpec,
        members: Mapping[str, Member],
    ) -> None:
        self.proposals: list[Proposal] = []  # of all rounds
        self._request = request
        self._blend = blend
        self._spec = spec
        self._seed = seed
        self._limits = limits
        self._members = members
        self._usage: dict[str, MemberUsage] = {}

    def plans(self, proposers: Sequence[str], layer: int, prompt: Prompt) -> list[Plan]:
        """Every reply of a round; raises InvalidRequest or Unsupported before anything is leased.

        Each is what its member alone would say to the prompt with the seed that it gets here.
        """
        names = list(self._spec.members)
        return [
            self.plan(name, prompt, self._seed_of(layer, names.index(name), number))
            for name in proposers
            for number in range(self._spec.replies)
        ]

    @property
    def resumption(self) -> Resumption | None:
        """What the caller has of the answer; of what it is made from it has nothing."""
        return self._request.resumption

    def plan(
        self, member: str, prompt: Prompt, seed: int, resumption: Resumption | None = None
    ) -> Plan:
        """One reply by one member."""
        request = replace(
            self._request,
            prompt=prompt,
            sampling=replace(self._request.sampling, seed=seed),
            overrides=Overrides(member=member),
            resumption=resumption,
        )
        return make_plan(request, self._blend, self._limits, seed)

    def generation(self, plan: Plan) -> Generation:
        """A reply that can be streamed; `add` its usage when it is over."""
        return Generation(plan, self._members, self._limits.lease_timeout_s)

    def add(self, usage: Sequence[MemberUsage]) -> None:
        """Count what a reply has cost."""
        for used in usage:
            self._usage.setdefault(used.member, MemberUsage(used.member)).__iadd__(used)

    def outcome(self, ended: Outcome) -> Outcome:
        """How the answer ended, with everything that all replies have cost."""
        usage = tuple(self._usage[n] for n in self._spec.members if n in self._usage)
        proposals = tuple(self.proposals)
        return replace(ended, seed=self._seed, usage=usage, proposals=proposals)

    async def gather(self, plans: Sequence[Plan], layer: int) -> list[Proposal]:
        """Write all, or a quorum of them when the time limit has passed.

        Raises what went wrong if too few could be written, and at once what is the caller's fault.
        """
        tasks = [asyncio.create_task(self._write(plan)) for plan in plans]
        try:
            await self._enough(tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        found = [_proposal(p, layer, task) for p, task in zip(plans, tasks, strict=True)]
        self.proposals += found
        return found

    async def _enough(self, tasks: Sequence[asyncio.Task[_Written]]) -> None:
        """Return when nothing more is worth waiting for."""
        loop, limit_s = asyncio.get_running_loop(), self._spec.time_limit_s
        deadline_s = loop.time() + limit_s if limit_s else None
        pending = set(tasks)
        num_complete = 0
        while pending:
            left_s = None if deadline_s is None else deadline_s - loop.time()
            if left_s is not None and left_s <= 0:
                if num_complete >= self._spec.quorum:
                    return
                left_s = None
            done, pending = await asyncio.wait(
                pending, timeout=left_s, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                if isinstance(error := task.exception(), InvalidRequest | Unsupported):
                    raise error
                num_complete += error is None
        if num_complete < self._spec.quorum:
            raise next(error for task in tasks if (error := task.exception()))

    async def _write(self, plan: Plan) -> _Written:
        generation, written = self.generation(plan), _Written()
        try:
            async with aclosing(generation.updates()) as updates:
                async for update in updates:
                    written.text += update.text
                    written.tokens += update.tokens
                    written.outcome = update.outcome
        finally:
            self.add(generation.usage)
        return written

    def _seed_of(self, layer: int, member: int, number: int) -> int:
        position = ((layer << 16) + member) * _MOST_REPLIES + number
        return key(self._seed, Purpose.PROPOSAL, position)


class _Written:
    """A reply under way."""

    def __init__(self) -> None:
        self.text = ""
        self.tokens: list[ReplyToken] = []
        self.outcome: Outcome | None = None


def _proposal(plan: Plan, layer: int, task: asyncio.Task[_Written]) -> Proposal:
    (speaker,) = plan.method.speakers
    blank = Proposal(plan.members[speaker], layer, plan.seed, ProposalState.LATE)
    if task.cancelled():
        return blank
    if error := task.exception():
        words = error.message if isinstance(error, CuveeError) else type(error).__name__
        return replace(blank, state=ProposalState.FAILED, error=words)
    written = task.result()
    return replace(
        blank,
        state=ProposalState.COMPLETE,
        text=written.text,
        tokens=tuple(written.tokens),
        outcome=written.outcome,
    )


def proposer_weights(spec: ProposingSpec, overrides: Overrides) -> dict[str, float]:
    """How much each member that proposes counts, summing to 1; alike where they have roles."""
    if isinstance(spec, ChooseSpec):
        weights = {n: w for n, w in blend_weights(spec, overrides).items() if w > 0}
    else:
        weights = dict.fromkeys(spec.proposers, 1 / len(spec.proposers))
    if spec.quorum > (num_replies := len(weights) * spec.replies):
        raise InvalidRequest(
            "INVALID_WEIGHTS",
            f"got weights of {len(weights)} members, who write {num_replies} replies; expected "
            f"the blend's quorum of {spec.quorum}",
            field="overrides.weights",
        )
    return weights
