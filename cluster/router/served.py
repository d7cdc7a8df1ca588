"""A spec and what is known of its models: which of its blends can be served, and what they are."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from cluster.errors import CuveeError, NotFound, Unavailable
from cluster.gates.file import GateFile, gate_of
from cluster.members.base import Member, MemberInfo, Tokens
from cluster.rankers.base import Ranker
from cluster.router.blends import ServedBlend
from cluster.router.gating import PromptGates
from cluster.spec import BlendSpec, ClusterSpec

logger = logging.getLogger(__name__)

_RETRY_S = 1.0


class Served:
    """One blend file's models, as far as they are there."""

    def __init__(
        self, spec: ClusterSpec, members: Mapping[str, Member], rankers: Mapping[str, Ranker]
    ) -> None:
        self.spec = spec
        self.members = members
        self.rankers = rankers
        self.gates = PromptGates(rankers)
        self.is_over = False  # another spec took its place
        self._gate_files: dict[str, GateFile | None] = {}  # by blend
        self._ready_rankers: set[str] = set()
        self._leaving: dict[str, str] = {}  # by member, the model whose place another takes
        self._infos: dict[str, MemberInfo] = {}
        self._tokens: dict[str, Tokens] = {}  # of members that draw together with others
        self._blends: dict[str, ServedBlend] = {}  # all that is known of one never changes

    @property
    def knows_all(self) -> bool:
        """Whether every blend is decided: served, or refused for good."""
        spec = self.spec
        return len(self._infos) == len(spec.members) and self._ready_rankers >= set(spec.rankers)

    @property
    def ready_blends(self) -> list[str]:
        """Blends that are served: their members are known, and may be blended."""
        return [name for name in self.spec.blends if self._is_ready(name)]

    def blend(self, name: str) -> ServedBlend:
        """A served blend; the empty name means the default one."""
        name = name or self.spec.default_blend
        if name not in self._blends:
            self._blends[name] = self._met(name)
        return self._blends[name]

    def _met(self, name: str) -> ServedBlend:
        """A blend whose models are all known; raises NotFound, Unavailable, or what forbids it."""
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

    def take_over(self, before: Served) -> None:
        """Know of models what another spec's models told, where they are the same."""
        for name, ranker in self.spec.rankers.items():
            if before.spec.rankers.get(name) == ranker and name in before._ready_rankers:
                self._ready_rankers.add(name)
        for name, member in self.spec.members.items():
            known = before.spec.members.get(name, member)
            if known.model != member.model:
                self._leaving[name] = known.model_name
            is_same = known == member and name in before._infos
            if is_same and (name in before._tokens or not self._draws_together(name)):
                self._infos[name] = before._infos[name]
                if name in before._tokens:
                    self._tokens[name] = before._tokens[name]

    async def learn(self) -> None:
        """Ask every model once what it is, retrying for ever those that are not there yet."""
        await asyncio.gather(
            *(self._learn(name) for name in self.spec.members),
            *(self._await_ranker(name) for name in self.spec.rankers),
        )

    def _is_ready(self, name: str) -> bool:
        try:
            self.blend(name)
        except CuveeError:
            return False
        return True

    def _gate_file(self, name: str, spec: BlendSpec) -> GateFile | None:
        """The gate that a blend has learned, read once."""
        if name not in self._gate_files:
            self._gate_files[name] = gate_of(self.spec, spec)
        return self._gate_files[name]

    def _draws_together(self, name: str) -> bool:
        blends = self.spec.blends.values()
        return any(
            blend.draws_together and not blend.by_bytes and name in blend.members
            for blend in blends
        )

    async def _learn(self, name: str) -> None:
        while name not in self._infos and not self.is_over:
            try:
                lease = await self.members[name].lease(self.spec.limits.lease_timeout_s)
                try:
                    if lease.info.model == self._leaving.get(name):
                        raise Unavailable("MEMBER_UNAVAILABLE", "it is still the one before")
                    if self._draws_together(name):
                        self._tokens[name] = await lease.transport.tokens()
                    self._infos[name] = lease.info
                finally:
                    await lease.release()
            except CuveeError as error:
                logger.warning("member %s is not there yet: %s", name, error.message)
                await asyncio.sleep(_RETRY_S)

    async def _await_ranker(self, name: str) -> None:
        while name not in self._ready_rankers and not self.is_over:
            try:
                await self.rankers[name].ready()
                self._ready_rankers.add(name)
            except CuveeError as error:
                logger.warning("ranker %s is not there yet: %s", name, error.message)
                await asyncio.sleep(_RETRY_S)
