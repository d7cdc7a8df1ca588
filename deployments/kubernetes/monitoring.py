"""For the Prometheus operator and Grafana: what is scraped, what is an alert, and the dashboard."""

from __future__ import annotations

from dataclasses import dataclass

from deployments.kubernetes.dashboard import dashboard, member_gauge
from deployments.kubernetes.options import Object, RenderOptions
from deployments.kubernetes.pods import HEAD_METRICS

_API = "monitoring.coreos.com/v1"
_INTERVAL = "15s"


@dataclass(frozen=True, slots=True)
class Alert:
    """What somebody should look at."""

    name: str
    expression: str  # PromQL that gives something when it is so
    for_minutes: int
    severity: str
    summary: str
    what_to_do: str


def _share_of(num: str, of: str) -> str:
    return f"sum(rate({num}[5m])) / sum(rate({of}[5m]))"


ALERTS = (
    Alert(
        "CuveeNoRouter",
        "absent(cuvee_num_requests_running)",
        2,
        "critical",
        "No router answers Prometheus.",
        "kubectl get pods -l app.kubernetes.io/component=router; see 'Lose a node'.",
    ),
    Alert(
        "CuveeQueueing",
        "sum(cuvee_num_requests_waiting) > 0",
        10,
        "warning",
        "Generations have waited for ten minutes without a break.",
        "Raise serving.routers.max, or max_replicas of the member whose leases wait.",
    ),
    Alert(
        "CuveeSlowFirstToken",
        "histogram_quantile(0.95, sum by (le, blend) "
        "(rate(cuvee_time_to_first_token_seconds_bucket[5m]))) > 10",
        10,
        "warning",
        "One of twenty first tokens of {{ $labels.blend }} takes more than 10 s.",
        "Look at work waiting in engines: lower target_leases, or raise max_replicas.",
    ),
    Alert(
        "CuveeFailing",
        _share_of('cuvee_request_failure_total{reason!="CANCELLED"}', "cuvee_request_success_total")
        + " > 0.05",
        5,
        "critical",
        "More than one reply in twenty fails.",
        "The dashboard's 'Ended per second' has the reasons; docs/kubernetes.md what each means.",
    ),
    Alert(
        "CuveeDegraded",
        "sum by (blend) (increase(cuvee_degraded_requests_total[10m])) > 0",
        0,
        "warning",
        "Replies of {{ $labels.blend }} go on without a member.",
        "kubectl get pods -l app.kubernetes.io/component=member: which pool has none ready?",
    ),
    Alert(
        "CuveeReplicasLost",
        "sum by (blend) (increase(cuvee_replica_takeovers_total[10m])) > 20",
        0,
        "warning",
        "Replicas are lost under replies of {{ $labels.blend }} again and again.",
        "kubectl get events: nodes that go, pods out of memory, probes that fail.",
    ),
    Alert(
        "CuveeCacheFull",
        f"min by (member) ({member_gauge('kv_fill')}) > 0.9",
        10,
        "warning",
        "Every cache of {{ $labels.member }} is nearly full.",
        "Raise kv_memory or max_replicas, or lower max_context.",
    ),
)


def monitoring(options: RenderOptions) -> list[Object]:
    """Monitors, rules and the dashboard."""
    head = ["metrics", *HEAD_METRICS]
    return [
        _pod_monitor(options, "head", {"matchLabels": options.labels("head")}, head),
        _pod_monitor(options, "workers", _workers(options), ["metrics"]),
        _router_monitor(options),
        _rules(options),
        _dashboard(options),
    ]


def _workers(options: RenderOptions) -> Object:
    kinds = {
        "key": "app.kubernetes.io/component",
        "operator": "In",
        "values": ["router", "member", "ranker"],
    }
    return {"matchLabels": options.labels(), "matchExpressions": [kinds]}


def _pod_monitor(options: RenderOptions, name: str, selector: Object, ports: list[str]) -> Object:
    """Ray's own metrics of nodes, and members' among them. The network policy guards them."""
    cluster = {
        "sourceLabels": ["__meta_kubernetes_pod_label_ray_io_cluster"],
        "targetLabel": "ray_io_cluster",
    }
    endpoints = [{"port": port, "interval": _INTERVAL, "relabelings": [cluster]} for port in ports]
    return {
        "apiVersion": _API,
        "kind": "PodMonitor",
        "metadata": options.metadata(name, component="monitoring"),
        "spec": {"selector": selector, "podMetricsEndpoints": endpoints},
    }


def _router_monitor(options: RenderOptions) -> Object:
    """Routers' own metrics, by a key with the scope metrics."""
    key = {"name": f"{options.name}-metrics-key", "key": "token"}
    endpoint = {
        "port": "http-metrics",
        "path": "/metrics",
        "interval": _INTERVAL,
        "authorization": {"type": "Bearer", "credentials": key},
    }
    return {
        "apiVersion": _API,
        "kind": "ServiceMonitor",
        "metadata": options.metadata("routers", component="monitoring"),
        "spec": {
            "selector": {"matchLabels": options.labels("metrics")},
            "endpoints": [endpoint],
        },
    }


def _rules(options: RenderOptions) -> Object:
    rules = [
        {
            "alert": alert.name,
            "expr": alert.expression,
            "for": f"{alert.for_minutes}m",
            "labels": {"severity": alert.severity},
            "annotations": {"summary": alert.summary, "description": alert.what_to_do},
        }
        for alert in ALERTS
    ]
    return {
        "apiVersion": _API,
        "kind": "PrometheusRule",
        "metadata": options.metadata(component="monitoring"),
        "spec": {"groups": [{"name": options.name, "rules": rules}]},
    }


def _dashboard(options: RenderOptions) -> Object:
    metadata = options.metadata("dashboard", component="monitoring")
    metadata["labels"] = {**metadata["labels"], "grafana_dashboard": "1"}
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata,
        "data": {f"{options.name}.json": dashboard(options.name, options.namespace)},
    }
