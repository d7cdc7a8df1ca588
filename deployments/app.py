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
from cluster.spec import ClusterSpec, MemberSpec
from deployments.member import MemberDeployment
from deployments.router import DRAIN_S, RouterDeployment
from deployments.stages import MEMBER_PREFIX, ROUTER

ROUTER_CPUS = 0.1  # what placement sets aside; a router takes what it needs


def build(args: ClusterSpec) -> serve.Application:
    """One Serve deployment per member and one for the router, bound together."""
    members = {name: member_app(name, member) for name, member in args.members.items()}
    router = serve.deployment(
        name=ROUTER,
        num_replicas=args.serving.routers,
        ray_actor_options={"num_cpus": ROUTER_CPUS},
        max_ongoing_requests=args.limits.max_concurrent_generations,
        graceful_shutdown_timeout_s=DRAIN_S + 5,
    )(RouterDeployment)
    return router.bind(args.to_mapping(), members)


def member_app(name: str, member: MemberSpec) -> serve.Application:
    """A member's Serve deployment; its leases are Serve's ongoing requests."""
    resources = member.resources
    scaling = member.autoscaling
    replicas: dict[str, Any] = (
        {"num_replicas": member.min_replicas}
        if scaling is None
        else {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=scaling.min_replicas,
                max_replicas=scaling.max_replicas,
                target_ongoing_requests=scaling.target_leases,
            )
        }
    )
    try:
        most_leases = num_leases(member)
    except CuveeError as error:
        error.message = f"member {name!r}: {error.message}"
        raise
    deployment = serve.deployment(
        name=MEMBER_PREFIX + name,
        ray_actor_options={"num_cpus": resources.num_cpus, "num_gpus": resources.num_gpus},
        max_ongoing_requests=most_leases,
        graceful_shutdown_timeout_s=DRAIN_S,
        **replicas,
    )(MemberDeployment)
    return deployment.bind(name, member.model_dump(mode="json", by_alias=True, exclude_none=True))
