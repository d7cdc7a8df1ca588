"""A router as a plain process, over members that are plain processes too: Cuvée without Ray."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from cluster.errors import InvalidRequest, Unsupported
from cluster.garbage import spare_what_stays
from cluster.members.exchange import ExchangePool
from cluster.members.remote import Place, RemoteMember
from cluster.router.core import Router
from cluster.router.edge import Edge
from cluster.spec import ClusterSpec


@dataclass(frozen=True, slots=True)
class RouterProcess:
    """A router that runs here."""

    edge: Edge
    exchanges: ExchangePool

    async def ready(self) -> None:
        """Wait until it knows all members: every blend is served then, or refused for good."""
        await self.edge.router.learn_members()
        spare_what_stays()


@asynccontextmanager
async def running_router(
    spec: ClusterSpec, places: Mapping[str, Sequence[Place]], key: bytes = b""
) -> AsyncIterator[RouterProcess]:
    """Serve the spec over the members at these places; at the end replies under way may finish.

    Raises InvalidRequest where a member has no place, Unsupported for a spec with rankers.
    """
    check_places(spec, places)
    exchanges = ExchangePool()
    members = {name: RemoteMember(name, places[name], exchanges, key) for name in spec.members}
    edge = Edge(Router(spec, members))
    try:
        await edge.start(spec.serving.host, spec.serving.port)
        yield RouterProcess(edge, exchanges)
    finally:
        await edge.stop(spec.serving.drain_s)
        await exchanges.close()
        await asyncio.gather(*(member.close() for member in members.values()))


def check_places(spec: ClusterSpec, places: Mapping[str, Sequence[Place]]) -> None:
    """Refuse what cannot be served without Ray, and members that are nowhere."""
    if spec.rankers:
        words = "rankers run on Ray alone; expected a file without them, or `cuvee up`"
        raise Unsupported("RANKERS_NEED_RAY", words, field="rankers")
    missing = ", ".join(sorted(spec.members.keys() - places.keys()))
    if missing:
        words = f"got no address for {missing}; expected one for every member of the file"
        raise InvalidRequest("NO_ADDRESS", words, field="member")
    unknown = ", ".join(sorted(places.keys() - spec.members.keys()))
    if unknown:
        words = f"got {unknown}; expected members of the file: {', '.join(spec.members)}"
        raise InvalidRequest("UNKNOWN_MEMBER", words, field="member")
