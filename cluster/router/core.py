"""What the router does, whatever protocol asks for it."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import replace
from pathlib import Path

from cluster.blending.base import Learner, Together
from cluster.engine.types import SamplingParams
from cluster.errors import CuveeError, InvalidRequest, NotFound, Overloaded, Unavailable
from cluster.gates.file import GateFile, GateInputs, load_gate
from cluster.members.base import (
    Form,
    Member,
    MemberInfo,
    Prompt,
    ScoreText,
    SequenceStart,
    Step,
    StepToken,
    Tokens,
)
from cluster.rankers.base import Ranker
from cluster.router.coordinator import Generation
from cluster.router.gating import PromptGates
from cluster.router.on_each import on_each
from cluster.router.plan import (
    Plan,
    ServedBlend,
    blend_weights,
    check_prompt_renders,
    form_of,
    make_plan,
    overridden,
    sampling_params,
    scoring_plan,
)
from cluster.router.proposals import Panel, proposer_weights
from cluster.router.ranking import Ranking
from cluster.router.replies import choose, fuse
from cluster.router.requests import (
    GenerationRequest,
    MemberScore,
    Score,
    ScoreRequest,
    Update,
    check_prompt,
)
from cluster.router.scoring import blend_logprob, has_closed_form, mixture_scores
from cluster.router.seats import Seats
from cluster.router.together import combined_next
from cluster.router.transcript import Transcript
from cluster.spec import (
    BlendSpec,
    ChooseSpec,
    ClusterSpec,
    FrozenMapping,
    FuseSpec,
    LearnedGate,
    RouteSpec,
    SamplingSpec,
)

logger = logging.getLogger(__name__)

_OVERLOAD_RETRY_S = 1.0
_MEMBER_RETRY_S = 1.0


class Router:
    """Serves the blends of one spec over the given members and rankers."""

    def __init__(
        self,
        spec: ClusterSpec,
        members: Mapping[str, Member],
        rankers: Mapping[str, Ranker] = FrozenMapping({}),
    ) -> None:
        self.spec = spec
        self.num_active = 0  # generations under way
        self._members = members
        self._rankers = rankers
        self._gates = PromptGates(rankers)
        self._gate_files: dict[str, GateFile] = {}  # by blend
        self._ready_rankers: set[str] = set()
        self._infos: dict[str, MemberInfo] = {}
        self._tokens: dict[str, Tokens] = {}  # of members that draw tokens together with others

    async def learn_members(self) -> None:
        """Ask every member once what it is, retrying for ever those that are not there yet."""
        await asyncio.gather(
            *(self._learn(name) for name in self.spec.members),
            *(self._await_ranker(name) for name in self.spec.rankers),
        )

    @property
    def ready_blends(self) -> list[str]:
        """Blends that are served: their members are known, and may be blended."""
        return [name for name in self.spec.blends if self._is_ready(name)]

    @property
    def knows_all_members(self) -> bool:
        """Whether every blend is decided: served, or refused for good."""
        spec = self.spec
        return len(self._infos) == len(spec.members) and self._ready_rankers >= set(spec.rankers)

    def blend(self, name: str) -> ServedBlend:
        """A served blend; the empty name means the default one."""
        name = name or self.spec.default_blend
        spec = self.spec.blends.get(name)
        if spec is None:
            known = ", ".join(self.spec.blends)
            raise NotFound(
                "UNKNOWN_BLEND", f"got {name!r}; expected one of: {known}", field="blend"
            )
        missing = [member for member in spec.members if member not in self._infos]
        rankers = self.spec.rankers_of(name).values()
        missing += [ranker for ranker in rankers if ranker not in self._ready_rankers]
        if missing:
            raise Unavailable(
                "MEMBER_UNAVAILABLE", f"blend {name!r} waits for its models: {', '.join(missing)}"
            )
        infos = {member: self._infos[member] for member in spec.members}
        spec.check_vocabularies(name, {member: info.vocabulary for member, info in infos.items()})
        tokens = {member: self._tokens[member] for member in infos if member in self._tokens}
        revision, gate = self.spec.revision_of(name), self._gate_file(name, spec)
        if gate is not None:
            revision = f"{revision}-{gate.digest}"
        return ServedBlend(name, spec, revision, infos, tokens, gate)

    def _gate_file(self, name: str, spec: BlendSpec) -> GateFile | None:
        """The gate that a blend has learned, read once."""
        if not (isinstance(spec, RouteSpec) and isinstance(spec.gate, LearnedGate)):
            return None
        if name not in self._gate_files:
            inputs = GateInputs.of(self.spec, spec)
            self._gate_files[name] = load_gate(Path(spec.gate.file), inputs)
        return self._gate_files[name]

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Update, None]:
        """Write one reply; the last update has the outcome."""
        blend = self.blend(request.blend)
        with self._admitted():
            async with aclosing(await self._updates(request, blend)) as updates:
                async for update in updates:
                    yield update

    async def _updates(
        self, request: GenerationRequest, blend: ServedBlend
    ) -> AsyncGenerator[Update, None]:
        """The reply that the blend's method gives; refuses what it cannot do."""
        spec, limits = overridden(blend, request.overrides), self.spec.limits
        fresh_seed = secrets.randbits(63)
        is_pinned = request.overrides.member is not None
        if not is_pinned and isinstance(spec, ChooseSpec | FuseSpec):
            seed = fresh_seed if request.sampling.seed is None else request.sampling.seed
            panel = Panel(request, blend, spec, seed, limits, self._members)
            weights = proposer_weights(spec, request.overrides)
            ranking = Ranking(weights, self._members, self._rankers, self.spec)
            if isinstance(spec, ChooseSpec):
                return choose(panel, ranking, spec, request.prompt, list(weights))
            return fuse(panel, ranking, spec, request.prompt, seed)
        if not is_pinned and isinstance(spec, RouteSpec) and spec.decides_once:
            prior = blend_weights(spec, request.overrides)
            decided = await self._gates.weights(blend, spec, prior, request.prompt)
            plan = make_plan(request, blend, limits, fresh_seed, decided)
        else:
            plan = make_plan(request, blend, limits, fresh_seed)
        return Generation(plan, self._members, limits.lease_timeout_s).updates()

    async def score(self, request: ScoreRequest) -> Score:
        """Measure a continuation under every member that takes part, and under the blend."""
        blend = self.blend(request.blend)
        spec = overridden(blend, request.overrides)
        weights = {n: w for n, w in blend_weights(spec, request.overrides).items() if w > 0}
        infos = [blend.infos[name] for name in weights]
        check_prompt_renders(request.prompt, infos)
        sampling = sampling_params(request.sampling, SamplingSpec())
        start = SequenceStart(
            prompt=request.prompt,
            form=Form.TOKEN_IDS,
            sampling=sampling,
            seed=0,
            prefill=False,
            max_prompt_tokens=self.spec.limits.max_prompt_tokens,
        )
        want = Step(0, ScoreText(request.continuation))
        with self._admitted():
            found = await self._on_each(weights, start, want)
            members = tuple(
                MemberScore(name, weight, tuple(found[name][1])) for name, weight in weights.items()
            )
            form = form_of(infos)
            span = request.overrides.span or spec.span_for(one_vocabulary=form is Form.TOKEN_IDS)
            mixture: tuple[StepToken, ...] = ()
            is_pinned = request.overrides.member is not None
            if spec.draws_together and not (has_closed_form(spec) or is_pinned):
                plan = scoring_plan(request, blend, spec, sampling)
                mixture = await self._score_together(plan, request.continuation, members[0].tokens)
            elif has_closed_form(spec) and form is Form.TOKEN_IDS and span in ("token", 1):
                mixture = mixture_scores(members, spec)
        return Score(
            blend=blend.name,
            revision=blend.revision,
            members=members,
            mixture=mixture,
            logprob=blend_logprob(members, spec, span, mixture),
            num_bytes=len(request.continuation.encode()),
        )

    async def _score_together(
        self, plan: Plan, continuation: str, tokens: Sequence[StepToken]
    ) -> tuple[StepToken, ...]:
        """Each token, or byte, as likely as all members together make it."""
        assert isinstance(plan.method, Together)
        if plan.form is Form.BYTES:
            tokens = [StepToken(b, plan.tokens.bytes[b], 0.0) for b in continuation.encode()]
        seats = Seats(plan, self._members, self.spec.limits.lease_timeout_s)
        transcript = Transcript(plan.members, plan.form, ())
        found = []
        try:
            await seats.sit_down(plan.method.speakers, first=plan.method.speakers)
            for token in tokens:
                combined = await combined_next(plan.method, seats, transcript, (token.id,))
                if combined is None:  # the whole text fitted, in canonical tokens
                    raise InvalidRequest(
                        "CONTINUATION_TOO_LONG",
                        "got a text that fills a member's context when it is read byte by byte; "
                        "expected a shorter one",
                        field="continuation",
                    )
                found.append(replace(token, logprob=combined.logprob_of(token.id)))
                if isinstance(plan.method.rule, Learner):
                    plan.method.rule.learn(combined.told, token.id)
                transcript.commit(0, [token])
        finally:
            await seats.leave()
        return tuple(found)

    async def count_tokens(self, blend_name: str, prompt: Prompt) -> dict[str, tuple[int, int]]:
        """By member: the prompt's tokens, and the most that member can hold."""
        check_prompt(prompt)
        blend = self.blend(blend_name)
        check_prompt_renders(prompt, list(blend.infos.values()))
        start = SequenceStart(
            prompt=prompt,
            form=Form.TOKEN_IDS,
            sampling=SamplingParams(),
            seed=0,
            prefill=False,
        )
        with self._admitted():
            found = await self._on_each(blend.infos, start, None)
        return {name: (found[name][0], info.max_context) for name, info in blend.infos.items()}

    async def _on_each(
        self, names: Iterable[str], start: SequenceStart, want: Step | None
    ) -> dict[str, tuple[int, list[StepToken]]]:
        members = {name: self._members[name] for name in names}
        return await on_each(members, start, want, self.spec.limits.lease_timeout_s)

    @contextmanager
    def _admitted(self) -> Iterator[None]:
        limit = self.spec.limits.max_concurrent_generations
        if self.num_active >= limit:
            raise Overloaded(
                "TOO_MANY_GENERATIONS",
                f"{limit} generations are under way, the most this router takes",
                retry_delay_s=_OVERLOAD_RETRY_S,
            )
        self.num_active += 1
        try:
            yield
        finally:
            self.num_active -= 1

    def _is_ready(self, name: str) -> bool:
        try:
            self.blend(name)
        except CuveeError:
            return False
        return True

    async def _learn(self, name: str) -> None:
        drawing_together = {
            member
            for blend in self.spec.blends.values()
            if blend.draws_together and not blend.by_bytes
            for member in blend.members
        }
        while name not in self._infos:
            try:
                lease = await self._members[name].lease(self.spec.limits.lease_timeout_s)
                try:
                    if name in drawing_together:
                        self._tokens[name] = await lease.transport.tokens()
                    self._infos[name] = lease.info
                finally:
                    await lease.release()
            except CuveeError as error:
                logger.warning("member %s is not there yet: %s", name, error.message)
                await asyncio.sleep(_MEMBER_RETRY_S)

    async def _await_ranker(self, name: str) -> None:
        while name not in self._ready_rankers:
            try:
                await self._rankers[name].ready()
                self._ready_rankers.add(name)
            except CuveeError as error:
                logger.warning("ranker %s is not there yet: %s", name, error.message)
                await asyncio.sleep(_MEMBER_RETRY_S)
