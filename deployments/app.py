"""The application builder: one validated blend file in, one Serve application out.

`serve deploy` and RayService name it as `import_path: deployments.app:build`, with the blend file's
text as `args`; `cuvee up` calls `application`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from ray import serve
from ray.serve.config import RequestRouterConfig

from cluster import __version__
from cluster.errors import CuveeError, InvalidRequest
from cluster.members.sizing import num_leases
from cluster.merging.cache import folder_of
from cluster.spec import (
    ClusterSpec,
    MemberSpec,
    MergedSpec,
    PlacedSpec,
    RankerSpec,
    RoutersSpec,
    parse_spec,
)
from deployments.member import MemberDeployment
from deployments.placement import serve_options
from deployments.ranker import MAX_RANKINGS, RankerDeployment
from deployments.router import RouterDeployment, user_config_of
from deployments.scaling import serve_config
from deployments.stages import MEMBER_PREFIX, RANKER_PREFIX, ROUTER

# Serve asks a replica's event loop, which the engine's thread leaves free. Three silences in a row
# and a frozen one is replaced, after some 20 s; with Serve's own defaults after 90.
HEALTH_PERIOD_S = 2.0
HEALTH_TIMEOUT_S = 6.0

DRAIN_S = 30.0  # how long leases may go on when a replica is stopped; then they move elsewhere


def build(args: Mapping[str, str]) -> serve.Application:
    """The application of a Serve config file, whose `args` have the blend file's text as `spec`.

    Text and no mapping: KubeRay sorts the keys of mappings, and blends and weights have an order.
    Paths in it are absolute. Raises SpecError as the blend file's reader does.
    """
    if args.keys() != {"spec"}:
        given = ", ".join(args) or "nothing"
        words = f"got {given}; expected spec alone, the text of a blend file"
        raise InvalidRequest("INVALID_ARGS", words, field="args")
    return application(parse_spec(args["spec"]))


def application(spec: ClusterSpec) -> serve.Application:
    """One Serve deployment per member, ranker and router, bound together."""
    return application_beside(spec, spec)


def application_beside(spec: ClusterSpec, before: ClusterSpec) -> serve.Application:
    """The application with the models of another one too: those on their way out."""
    members = {**before.members, **spec.members}
    rankers = {**before.rankers, **spec.rankers}
    for placed in (*members.values(), *rankers.values()):
        if isinstance(placed.model, MergedSpec):  # once, before replicas ask for it all together
            folder_of(placed, download=True)
    bound = [
        *(member_app(name, member) for name, member in members.items()),
        *(ranker_app(name, ranker) for name, ranker in rankers.items()),
    ]
    routers = spec.serving.routers
    router = serve.deployment(
        name=ROUTER,
        max_ongoing_requests=spec.limits.max_concurrent_generations,
        graceful_shutdown_timeout_s=spec.serving.drain_s + 5,
        user_config=user_config_of(spec),
        **serve_options(routers.resources),
        **_num_routers(routers),
    )(RouterDeployment)
    listens = spec.serving.model_dump(mode="json", exclude={"routers", "default_blend"})
    return _versioned(router, listens).bind(bound)


def member_app(name: str, member: MemberSpec) -> serve.Application:
    """A member's Serve deployment; its leases are Serve's ongoing requests."""
    try:
        most_leases = num_leases(member)
    except CuveeError as error:
        error.message = f"member {name!r}: {error.message}"
        raise
    deployment = serve.deployment(
        name=MEMBER_PREFIX + name,
        max_ongoing_requests=most_leases,
        graceful_shutdown_timeout_s=DRAIN_S,
        request_router_config=RequestRouterConfig(
            request_router_class="deployments.affinity:AffinityRouter"  # type: ignore[arg-type]
        ),
        health_check_period_s=HEALTH_PERIOD_S,
        health_check_timeout_s=HEALTH_TIMEOUT_S,
        **serve_options(member.resources),
        **_num_replicas(member, most_leases),
    )(MemberDeployment)
    return _versioned(deployment, _mapping(member)).bind(name, _mapping(member))


def ranker_app(name: str, ranker: RankerSpec) -> serve.Application:
    """A ranker's Serve deployment."""
    deployment = serve.deployment(
        name=RANKER_PREFIX + name,
        max_ongoing_requests=MAX_RANKINGS,
        graceful_shutdown_timeout_s=DRAIN_S,
        **serve_options(ranker.resources),
        **_num_replicas(ranker, MAX_RANKINGS),
    )(RankerDeployment)
    return _versioned(deployment, _mapping(ranker)).bind(_mapping(ranker))


def _num_replicas(placed: PlacedSpec, max_calls: int) -> dict[str, Any]:
    """So many, or a range and what decides; what a ranker is called for, it works on at once."""
    scaling = placed.autoscaling
    if scaling is None:
        return {"num_replicas": placed.min_replicas}
    by_pressure = scaling.by == "pressure" and isinstance(placed, MemberSpec)
    config = serve_config(
        scaling,
        min_replicas=scaling.min_replicas,
        max_replicas=scaling.max_replicas,
        target=scaling.target_leases,
        stat="working" if by_pressure else "",
        max_calls=max_calls,
    )
    return {"autoscaling_config": config}


def _num_routers(routers: RoutersSpec) -> dict[str, Any]:
    if routers.min == routers.max:
        return {"num_replicas": routers.min}
    config = serve_config(
        routers,
        min_replicas=routers.min,
        max_replicas=routers.max,
        target=routers.target_generations,
        stat="generations",
    )
    return {"autoscaling_config": config}


def _mapping(placed: PlacedSpec) -> dict[str, Any]:
    """What its replicas need to know: how many there are is Serve's to change, in place."""
    is_others = {"replicas", "autoscaling", "cost"}
    return placed.model_dump(mode="json", by_alias=True, exclude_none=True, exclude=is_others)


def _versioned(deployment: serve.Deployment, *decisive: object) -> serve.Deployment:
    """Named by what decides its replicas, so that to deploy the same again restarts none of them.

    Without a name Serve gives a random one at each deployment, and restarts everything.
    """
    content = json.dumps([__version__, *decisive], sort_keys=True)
    version = hashlib.sha256(content.encode()).hexdigest()[:16]
    return deployment.options(_internal=True, version=version)
