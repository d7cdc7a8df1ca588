"""Who may reach what, who runs first, and what a drain has to leave running."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.spec import ClusterSpec
from deployments.kubernetes.options import EDGE_PORT, METRICS_PORT, Object, RenderOptions
from deployments.kubernetes.pods import HEAD_METRICS, RAY_PORTS, pool_labels
from deployments.kubernetes.pools import pools_of
from deployments.kubernetes.site import downloads

CLIENT_LABEL = {"cuvee.dev/client": "true"}  # of namespaces whose pods may call
MONITORING_LABEL = {"cuvee.dev/monitoring": "true"}  # of the one that Prometheus runs in
_ALL = "0.0.0.0/0"
_METADATA_SERVICE = "169.254.169.254/32"  # of clouds: it gives away the node's rights


def namespace(options: RenderOptions) -> Object:
    """One that admits no pod with more rights than it needs."""
    modes = ("enforce", "audit", "warn")
    labels = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in modes}
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": options.namespace, "labels": options.labels() | labels},
    }


def service_account(options: RenderOptions) -> Object:
    """Of pools: it may do nothing, and its token is in no pod. The head's own KubeRay makes."""
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": options.metadata("worker", component="worker"),
        "automountServiceAccountToken": False,
    }


def priority_classes(options: RenderOptions) -> list[Object]:
    """Where room is short, the head and routers go before replicas: one router serves them all."""
    what = {"control": (1_000_000, "the head and routers"), "serving": (900_000, "replicas")}
    return [
        {
            "apiVersion": "scheduling.k8s.io/v1",
            "kind": "PriorityClass",
            "metadata": {"name": f"{options.name}-{name}", "labels": options.labels()},
            "value": value,
            "globalDefault": False,
            "preemptionPolicy": "PreemptLowerPriority",
            "description": f"{options.name}: {words}",
        }
        for name, (value, words) in what.items()
    ]


def disruption_budgets(spec: ClusterSpec, options: RenderOptions) -> list[Object]:
    """All but one of each pool's least pods stay; pools of one have none, or no drain would end.

    A whole number, since RayClusters have no scale subresource to take a share of. A pod that does
    not serve may go at any time.
    """
    return [
        {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": options.metadata(pool.name, component=pool.kind),
            "spec": {
                "minAvailable": pool.min_pods - 1,
                "unhealthyPodEvictionPolicy": "AlwaysAllow",
                "selector": {"matchLabels": pool_labels(pool, options)},
            },
        }
        for pool in pools_of(spec)
        if pool.min_pods > 1
    ]


def network_policies(options: RenderOptions) -> list[Object]:
    """Pods of this installation speak to each other and to DNS; all else is named here."""
    everyone, head, router = options.labels(), options.labels("head"), options.labels("router")
    inside: Object = {"podSelector": {"matchLabels": everyone}}
    kube_system = {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}
    kube_dns = {"matchLabels": {"k8s-app": "kube-dns"}}
    dns = {
        "to": [{"namespaceSelector": kube_system, "podSelector": kube_dns}],
        "ports": [{"protocol": protocol, "port": 53} for protocol in ("UDP", "TCP")],
    }
    clients = [{"namespaceSelector": {"matchLabels": CLIENT_LABEL}}]
    prometheus = [{"namespaceSelector": {"matchLabels": MONITORING_LABEL}}]
    operator = [
        {
            "namespaceSelector": {},
            "podSelector": {"matchLabels": {"app.kubernetes.io/name": "kuberay-operator"}},
        }
    ]
    return [
        _policy(
            options,
            "inside",
            everyone,
            ingress=[{"from": [inside]}],
            egress=[{"to": [inside]}, dns],
        ),
        _policy(options, "calls", router, ingress=[_rule("from", clients, [EDGE_PORT])]),
        _policy(
            options,
            "operator",
            head,
            ingress=[_rule("from", operator, [RAY_PORTS["dashboard"]])],
        ),
        _policy(
            options,
            "scrapes",
            everyone,
            ingress=[_rule("from", prometheus, [RAY_PORTS["metrics"]])],
        ),
        _policy(
            options,
            "head-scrapes",
            head,
            ingress=[_rule("from", prometheus, list(HEAD_METRICS.values()))],
        ),
        _policy(
            options,
            "router-scrapes",
            router,
            ingress=[_rule("from", prometheus, [METRICS_PORT])],
        ),
        _policy(
            options,
            "autoscaler",
            head,
            egress=[_rule("to", [{"ipBlock": {"cidr": options.api_server}}], [443, 6443])],
        ),
    ]


def installation_policies(spec: ClusterSpec, options: RenderOptions) -> list[Object]:
    """The head may reach its Redis, and all of them a hub, if any model comes from one."""
    found: list[Object] = []
    if options.has("redis"):
        port = int(options.redis_address.rpartition(":")[2])
        egress = [_rule("to", [{"namespaceSelector": {}}], [port])]
        found.append(_policy(options, "redis", options.labels("head"), egress=egress))
    if downloads(spec):
        block = {"cidr": _ALL, "except": [_METADATA_SERVICE]}
        egress = [_rule("to", [{"ipBlock": block}], [443])]
        found.append(_policy(options, "downloads", options.labels(), egress=egress))
    return found


def _policy(
    options: RenderOptions,
    name: str,
    selects: dict[str, str],
    *,
    ingress: Sequence[Object] = (),
    egress: Sequence[Object] = (),
) -> Object:
    rules = {"ingress": list(ingress), "egress": list(egress)}
    given = {direction: rule for direction, rule in rules.items() if rule}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": options.metadata(name),
        "spec": {
            "podSelector": {"matchLabels": selects},
            "policyTypes": [direction.capitalize() for direction in given],
            **given,
        },
    }


def _rule(direction: str, peers: list[Object], ports: list[int]) -> Object:
    return {direction: peers, "ports": [{"protocol": "TCP", "port": port} for port in ports]}
