"""How calls reach the routers: Services, and from outside a Gateway with a GRPCRoute."""

from __future__ import annotations

from deployments.kubernetes.options import EDGE_PORT, METRICS_PORT, Object, RenderOptions

_H2C = "kubernetes.io/h2c"
# AdminService stays inside, and health tells callers outside nothing that they need.
_OUTSIDE = ("cuvee.v1.GenerationService", "cuvee.v1.BlendService")


def services(options: RenderOptions) -> list[Object]:
    """All select ready routers of every RayCluster of this RayService, the new one's and the old.

    KubeRay's own Service selects all workers of one RayCluster, and members answer no calls.
    """
    grpc = {"name": "grpc", "port": EDGE_PORT, "targetPort": "grpc", "appProtocol": _H2C}
    metrics = {"name": "http-metrics", "port": METRICS_PORT, "targetPort": "router-metrics"}
    return [
        _service(options, "", grpc),  # for the gateway, which balances calls by itself
        _service(options, "headless", grpc, headless=True),  # for clients that balance by DNS
        _service(options, "metrics", metrics | {"appProtocol": "http"}, headless=True),
    ]


def _service(
    options: RenderOptions, suffix: str, port: Object, *, headless: bool = False
) -> Object:
    spec: Object = {"type": "ClusterIP", "selector": options.labels("router")}
    if headless:
        spec["clusterIP"] = "None"
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": options.metadata(suffix, component=suffix or "grpc"),
        "spec": spec | {"ports": [{**port, "protocol": "TCP"}]},
    }


def gateway(options: RenderOptions) -> list[Object]:
    """TLS ends here, with the Secret that cert-manager or somebody else fills."""
    secret = {"kind": "Secret", "name": f"{options.name}-tls"}
    listener = {
        "name": "grpc",
        "port": 443,
        "protocol": "HTTPS",
        "hostname": options.host,
        "tls": {"mode": "Terminate", "certificateRefs": [secret]},
        "allowedRoutes": {"namespaces": {"from": "Same"}},
    }
    rule = {
        "matches": [{"method": {"type": "Exact", "service": service}} for service in _OUTSIDE],
        "backendRefs": [{"kind": "Service", "name": options.name, "port": EDGE_PORT}],
    }
    return [
        {
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "Gateway",
            "metadata": options.metadata(component="gateway"),
            "spec": {"gatewayClassName": options.gateway_class, "listeners": [listener]},
        },
        {
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "GRPCRoute",
            "metadata": options.metadata(component="gateway"),
            "spec": {
                "parentRefs": [{"name": options.name, "sectionName": "grpc"}],
                "hostnames": [options.host],
                "rules": [rule],
            },
        },
    ]


def certificate(options: RenderOptions) -> Object:
    """cert-manager fills the gateway's Secret, and renews it."""
    return {
        "apiVersion": "cert-manager.io/v1",
        "kind": "Certificate",
        "metadata": options.metadata("tls", component="gateway"),
        "spec": {
            "secretName": f"{options.name}-tls",
            "dnsNames": [options.host],
            "privateKey": {"algorithm": "ECDSA", "size": 256, "rotationPolicy": "Always"},
            "issuerRef": {
                "group": "cert-manager.io",
                "kind": "ClusterIssuer",
                "name": options.issuer,
            },
        },
    }
