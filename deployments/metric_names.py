"""Names of metrics that members tell, by the field of `Pressure` that they show. Imports no Ray."""

from __future__ import annotations

MEMBER_GAUGES = {
    "busy": ("cuvee_engine_busy_ratio", "Share of the time in which the engine stepped."),
    "working": ("cuvee_engine_works_running", "Leases that the engine had work for, on average."),
    "waiting": ("cuvee_engine_works_waiting", "Of those, the ones that did not ride in the step."),
    "kv_fill": ("cuvee_kv_cache_usage_ratio", "Share of the cache that open sequences hold."),
    "leases": ("cuvee_replica_leases", "Leases held."),
}
RAY_PREFIX = "ray_"  # by Ray's exporter
