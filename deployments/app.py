"""The application builder: one validated blend file in, one Serve application out.

`serve deploy` and RayService name it as `import_path: deployments.app:build` with the blend file's
content as `args`; `cuvee up` calls it directly.
"""

from __future__ import annotations

from typing import Any

from ray import serve
from ray.serve.config import AutoscalingConfig

from cluster.errors import CuveeError
from cluster.members.sizing import num_leases
from cluster.spec import ClusterSpec, MemberSpec, PlacedSpec, RankerSpec
from deployments.member import MemberDeployment
from deployments.ranker import MAX_RANKINGS, RankerDeployment
from deployments.router import DRAIN_S, RouterDeployment
from deployments.stages import MEMBER_PREFIX, RANKER_PREFIX, ROUTER

ROUTER_CPUS = 0.1  # what placement sets aside; a router takes what it needs


def build(args: ClusterSpec) -> serve.Application:
    """One Serve deployment per member, ranker and router, bound together."""
    members = {name: member_app(name, member) for name, member in args.members.items()}
    rankers = {name: ranker_app(name, ranker) for name, ranker in args.rankers.items()}
    router = serve.deployment(
        name=ROUTER,
        num_replicas=args.serving.routers,
        ray_actor_options={"num_cpus": ROUTER_CPUS},
        max_ongoing_requests=args.limits.max_concurrent_generations,
        graceful_shutdown_timeout_s=DRAIN_S + 5,
    )(RouterDeployment)
    return router.bind(args.to_mapping(), members, rankers)


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
        **_placement(member),
    )(MemberDeployment)
    return deployment.bind(name, _mapping(member))


def ranker_app(name: str, ranker: RankerSpec) -> serve.Application:
    """A ranker's Serve deployment."""
    deployment = serve.deployment(
        name=RANKER_PREFIX + name,
        max_ongoing_requests=MAX_RANKINGS,
        graceful_shutdown_timeout_s=DRAIN_S,
        **_placement(ranker),
    )(RankerDeployment)
    return deployment.bind(_mapping(ranker))


def _placement(placed: PlacedSpec) -> dict[str, Any]:
    resources, scaling = placed.resources, placed.autoscaling
    options: dict[str, Any] = {
        "ray_actor_options": {"num_cpus": resources.num_cpus, "num_gpus": resources.num_gpus}
    }
    if scaling is None:
        return options | {"num_replicas": placed.min_replicas}
    return options | {
        "autoscaling_config": AutoscalingConfig(
            min_replicas=scaling.min_replicas,
            max_replicas=scaling.max_replicas,
            target_ongoing_requests=scaling.target_leases,
        )
    }


def _mapping(placed: PlacedSpec) -> dict[str, Any]:
    return placed.model_dump(mode="json", by_alias=True, exclude_none=True)
