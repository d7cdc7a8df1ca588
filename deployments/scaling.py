"""How many replicas a Serve deployment should have: a pure decision, and it as a Serve policy.

Serve asks ten times a second and waits out the delays of the blend file before it acts. What
replicas record (`record_autoscaling_stats`) and what Serve counts of calls reaches it as means over
the file's window. Serve copies this module by value into its controller.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cluster.spec.scaling import PacedSpec

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingConfig, AutoscalingContext

# Between these shares of what is aimed at, nothing changes: load that wavers about the target
# starts and stops nobody.
TOO_MUCH = 1.1
TOO_LITTLE = 0.8
MAX_KV_FILL = 0.9  # beyond it, what sequences said before is evicted and computed again
_MAX_REPORT_S = 5.0


@dataclass(frozen=True, slots=True)
class Demand:
    """What a deployment has to carry, over all replicas."""

    load: float  # of what its target counts
    calls: float  # open, or waiting for a replica
    kv_fill: float = 0.0  # sum of the replicas' shares
    is_whole: bool = True  # every replica has reported


@dataclass(frozen=True, slots=True)
class Goals:
    """What one replica should carry, and what it can."""

    target: float  # of the load
    max_calls: float = math.inf


def num_wanted(demand: Demand, goals: Goals) -> float:
    """How many replicas would each carry exactly what they should."""
    return max(
        demand.load / goals.target,
        demand.calls / goals.max_calls,
        demand.kv_fill / MAX_KV_FILL,
    )


def decide(demand: Demand, goals: Goals, *, num_target: int, num_running: int) -> int:
    """The number of replicas to aim at next, before the bounds of the blend file.

    At most twice what runs, so that one measurement never asks for more than the next can confirm;
    at least half of it. None only where nobody asks; no fewer while somebody has not reported.
    """
    if demand.calls == 0 and demand.load == 0:
        return 0 if demand.is_whole else num_target
    wanted = num_wanted(demand, goals)
    if wanted > TOO_MUCH * num_target:
        return max(num_target, min(math.ceil(wanted), 2 * max(1, num_running)))
    num_enough = max(1, math.ceil(wanted / TOO_LITTLE), math.ceil(num_running / 2))
    return min(num_target, num_enough) if demand.is_whole else num_target


class LoadPolicy:
    """Serve's policy of one deployment: by a stat that its replicas record, or by calls alone."""

    def __init__(self, target: float, stat: str = "", max_calls: int | None = None) -> None:
        """Without `stat`, the load is the calls: open, or waiting for a replica."""
        self._goals = Goals(target, max_calls or math.inf)
        self._stat = stat

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """The replicas to aim at; nothing is remembered from one decision to the next."""
        stats = context.aggregated_metrics or {}
        calls, told = context.total_num_requests, stats.get(self._stat, {})
        demand = Demand(
            load=math.fsum(told.values()) if self._stat else calls,
            calls=calls,
            kv_fill=math.fsum(stats.get("kv_fill", {}).values()),
            is_whole=not self._stat or len(told) >= context.current_num_replicas,
        )
        num_replicas = decide(
            demand,
            self._goals,
            num_target=context.target_num_replicas,
            num_running=context.current_num_replicas,
        )
        return num_replicas, {}


def serve_config(
    pace: PacedSpec, *, min_replicas: int, max_replicas: int, **policy: Any
) -> AutoscalingConfig:
    """Serve's configuration for `LoadPolicy(**policy)`, at the pace of the blend file."""
    from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

    with warnings.catch_warnings():
        # Serve would have this set by environment, for the whole cluster; then short windows
        # would be filled with reports of ten seconds ago.
        warnings.simplefilter("ignore", DeprecationWarning)
        return AutoscalingConfig(
            min_replicas=min_replicas,
            max_replicas=max_replicas,
            metrics_interval_s=min(_MAX_REPORT_S, pace.window_s / 4),
            look_back_period_s=pace.window_s,
            upscale_delay_s=pace.upscale_delay_s,
            downscale_delay_s=pace.downscale_delay_s,
            policy=AutoscalingPolicy(  # type: ignore[no-untyped-call]
                policy_function="deployments.scaling:LoadPolicy", policy_kwargs=policy
            ),
        )
