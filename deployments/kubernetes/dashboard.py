"""The Grafana dashboard: what an operator asks first on top, what explains it below.

A test compares the names in its expressions with what the code tells.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from deployments.kubernetes.options import Object
from deployments.metric_names import MEMBER_GAUGES, RAY_PREFIX

_WIDTH, _HEIGHT, _PER_ROW = 8, 8, 3
_RATE = "$__rate_interval"


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture: queries by legend."""

    title: str
    unit: str  # Grafana's
    queries: tuple[tuple[str, str], ...]  # PromQL, legend
    about: str = ""


def member_gauge(field: str) -> str:
    """The name under which Prometheus finds a member's gauge."""
    return RAY_PREFIX + MEMBER_GAUGES[field][0]


def quantile(share: float, histogram: str) -> str:
    """Of a histogram by blend."""
    return f"histogram_quantile({share}, sum by (le, blend) (rate({histogram}_bucket[{_RATE}])))"


def _latency(title: str, histogram: str, about: str = "") -> Panel:
    shares = ((0.5, "median"), (0.95, "95 %"), (0.99, "99 %"))
    queries = [(quantile(share, histogram), f"{{{{blend}}}} {words}") for share, words in shares]
    return Panel(title, "s", tuple(queries), about)


def _by(title: str, unit: str, metric: str, label: str, how: str = "sum", about: str = "") -> Panel:
    return Panel(title, unit, ((f"{how} by ({label}) ({metric})", f"{{{{{label}}}}}"),), about)


def _rate(metric: str) -> str:
    return f"rate({metric}[{_RATE}])"


PANELS = (
    _latency("Time to first token", "cuvee_time_to_first_token_seconds", "With the wait in queue"),
    _latency("Between tokens", "cuvee_inter_token_latency_seconds"),
    _latency("Whole replies", "cuvee_e2e_request_latency_seconds"),
    Panel(
        "Generations",
        "short",
        (
            ("sum(cuvee_num_requests_running)", "running"),
            ("sum(cuvee_num_requests_waiting)", "waiting"),
        ),
        "Waiting ones ask for routers, or for members if their leases wait too",
    ),
    Panel(
        "Ended per second",
        "reqps",
        (
            (
                f"sum by (finished_reason) ({_rate('cuvee_request_success_total')})",
                "{{finished_reason}}",
            ),
            (f"sum by (reason) ({_rate('cuvee_request_failure_total')})", "{{reason}}"),
        ),
    ),
    _by("Tokens drawn", "short", _rate("cuvee_generation_tokens_total"), "member"),
    Panel(
        "Shares drawn against weights",
        "percentunit",
        (
            (
                f"sum by (blend, member) ({_rate('cuvee_generation_tokens_total')}) / on (blend) "
                f"group_left sum by (blend) ({_rate('cuvee_generation_tokens_total')})",
                "{{blend}} {{member}} drawn",
            ),
            ("max by (blend, member) (cuvee_member_weight_ratio)", "{{blend}} {{member}} weight"),
        ),
        "Per token they agree; where gates or evidence decide they need not",
    ),
    _by("Changes of speaker", "short", _rate("cuvee_speaker_switches_total"), "blend"),
    Panel(
        "Catching up",
        "short",
        (
            ("sum(cuvee_catch_up_backlog_tokens)", "backlog, tokens"),
            (f"sum by (member) ({_rate('cuvee_catch_up_tokens_total')})", "{{member}} per second"),
        ),
        "What members read of each other: the price of blending",
    ),
    Panel(
        "Drafts",
        "short",
        (
            (f"sum by (member) ({_rate('cuvee_draft_tokens_total')})", "{{member}} drafted"),
            (f"sum by (member) ({_rate('cuvee_draft_accepted_tokens_total')})", "{{member}} stood"),
        ),
        "Where few of them stand, drafts end by themselves",
    ),
    Panel(
        "Prompts",
        "short",
        (
            (f"sum by (member) ({_rate('cuvee_prompt_tokens_total')})", "{{member}} read"),
            (f"sum by (member) ({_rate('cuvee_cached_tokens_total')})", "{{member}} cached"),
        ),
    ),
    Panel(
        "Leases",
        "short",
        (
            ("sum by (member) (cuvee_num_leases)", "{{member}} held by routers"),
            (f"sum by (member) ({member_gauge('leases')})", "{{member}} on replicas"),
            (f"sum by (member) ({_rate('cuvee_leases_granted_total')})", "{{member}} per second"),
        ),
    ),
    _by("Work under way, which scales replicas", "short", member_gauge("working"), "member"),
    _by("Work waiting in engines", "short", member_gauge("waiting"), "member"),
    _by("Cache held", "percentunit", member_gauge("kv_fill"), "member", "max"),
    _by("Engines busy", "percentunit", member_gauge("busy"), "member", "avg"),
    _by("Replicas", "short", member_gauge("busy"), "member", "count"),
    Panel(
        "Faults survived",
        "short",
        (
            (f"sum by (blend) ({_rate('cuvee_replica_takeovers_total')})", "{{blend}} takeovers"),
            (f"sum by (blend) ({_rate('cuvee_degraded_requests_total')})", "{{blend}} degraded"),
        ),
        "Takeovers cost a prefill and no token; degraded replies went on without a member",
    ),
)


def dashboard(name: str, namespace: str) -> str:
    """Its JSON, as Grafana imports it."""
    content: Object = {
        "uid": f"{namespace}-{name}"[:40],
        "title": f"Cuvée: {name}",
        "tags": ["cuvee"],
        "timezone": "browser",
        "refresh": "30s",
        "schemaVersion": 39,
        "time": {"from": "now-1h", "to": "now"},
        "templating": {
            "list": [{"name": "datasource", "type": "datasource", "query": "prometheus"}]
        },
        "panels": [_panel(number, panel, namespace) for number, panel in enumerate(PANELS)],
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _panel(number: int, panel: Panel, namespace: str) -> Object:
    row, column = divmod(number, _PER_ROW)
    source = {"type": "prometheus", "uid": "${datasource}"}
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.about,
        "datasource": source,
        "gridPos": {"x": column * _WIDTH, "y": row * _HEIGHT, "w": _WIDTH, "h": _HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "targets": [
            {
                "refId": chr(ord("A") + place),
                "datasource": source,
                "expr": expression,
                "legendFormat": legend,
            }
            for place, (expression, legend) in enumerate(panel.queries)
        ],
    }
