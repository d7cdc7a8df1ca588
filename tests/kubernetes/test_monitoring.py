"""Dashboards and rules ask for metrics that the code tells, and monitors find who tells them."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from typing import Any

import pytest

from cluster.members.pressure import Pressure
from cluster.router.core import Router
from cluster.spec import parse_spec
from deployments.kubernetes.dashboard import PANELS
from deployments.kubernetes.monitoring import ALERTS
from deployments.metric_names import MEMBER_GAUGES, RAY_PREFIX
from tests.kubernetes.objects import Objects, objects_of, of_kind, one, templates

_NAME = re.compile(r"\b(?:ray_)?cuvee_[a-z0-9_]+")
_SAMPLES = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"], "gauge": [""]}
_MEMBERS = "version: 1\nmembers: {a: {model: embedded:x}}\n"
_SPEC = _MEMBERS + "blends: {b: {method: mixture, members: {a: 1}}}\n"


@pytest.fixture
def objects() -> Objects:
    return objects_of("production")


def told() -> set[str]:
    """Every series that routers and members give, as their own registries say."""
    router = Router(parse_spec(_SPEC), {})
    names = {
        family.name + suffix
        for family in router.metrics.registry.collect()
        for suffix in _SAMPLES[family.type]
    }
    return names | {RAY_PREFIX + name for name, _ in MEMBER_GAUGES.values()}


def asked() -> set[str]:
    expressions = [expression for panel in PANELS for expression, _ in panel.queries]
    expressions += [alert.expression for alert in ALERTS]
    return {name for expression in expressions for name in _NAME.findall(expression)}


def test_all_names_that_are_asked_for_are_told() -> None:
    assert asked() - told() == set()


def test_all_that_is_told_is_shown() -> None:
    histograms = {name for name in told() if name.endswith(("_sum", "_count"))}
    assert told() - histograms == asked()


def test_members_tell_every_part_of_their_pressure() -> None:
    assert MEMBER_GAUGES.keys() == {field.name for field in fields(Pressure)}


def test_the_rendered_dashboard_and_rules_have_these_expressions(objects: Objects) -> None:
    (text,) = one(objects, "ConfigMap")["data"].values()
    shown = [target["expr"] for panel in json.loads(text)["panels"] for target in panel["targets"]]
    assert shown == [expression for panel in PANELS for expression, _ in panel.queries]
    (group,) = one(objects, "PrometheusRule")["spec"]["groups"]
    assert [rule["expr"] for rule in group["rules"]] == [alert.expression for alert in ALERTS]
    for expression in (*shown, *(rule["expr"] for rule in group["rules"])):
        for opening, closing in ("()", "[]", "{}"):
            assert expression.count(opening) == expression.count(closing)


def test_panels_do_not_overlap(objects: Objects) -> None:
    (text,) = one(objects, "ConfigMap")["data"].values()
    places = [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in json.loads(text)["panels"]]
    assert len(set(places)) == len(places)


def test_monitors_find_pods_and_services_and_ports_that_are_there(objects: Objects) -> None:
    for monitor in of_kind(objects, "PodMonitor"):
        pods = _pods(objects, monitor["spec"]["selector"])
        assert pods
        for endpoint in monitor["spec"]["podMetricsEndpoints"]:
            for pod in pods:
                ports = {port["name"] for port in pod["spec"]["containers"][0]["ports"]}
                assert endpoint["port"] in ports
    monitor = one(objects, "ServiceMonitor")
    wanted = monitor["spec"]["selector"]["matchLabels"].items()
    labelled = {s["metadata"]["name"]: s["metadata"]["labels"] for s in of_kind(objects, "Service")}
    (name,) = [name for name, labels in labelled.items() if wanted <= labels.items()]
    service = one(objects, "Service", name)
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
    assert "credentials" in endpoint["authorization"]


def _pods(objects: Objects, selector: Any) -> list[Any]:
    def matches(labels: dict[str, str]) -> bool:
        return selector["matchLabels"].items() <= labels.items() and all(
            labels.get(rule["key"]) in rule["values"]
            for rule in selector.get("matchExpressions", [])
        )

    return [pod for pod in templates(objects).values() if matches(pod["metadata"]["labels"])]


def test_every_alert_says_what_to_do() -> None:
    assert all(alert.summary and alert.what_to_do for alert in ALERTS)
    assert {alert.severity for alert in ALERTS} == {"warning", "critical"}
