"""How far each part of a starting cluster is, read from Ray Serve's details of an application."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from enum import Enum
from typing import Any

from cluster.spec import ClusterSpec

APPLICATION = "cuvee"  # on Serve
RAY = "ray"
ROUTER = "router"
MEMBER_PREFIX = "member-"
RANKER_PREFIX = "ranker-"

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_ERROR_LINE = re.compile(r"(?:[A-Za-z_]\w*\.)*[A-Z]\w*: (.+)")  # module.Class: what was wrong
_FAILED = "failed to start"  # Serve's words, also before it has given up trying again


class Stage(Enum):
    """How far a part is."""

    WAITING = "waiting"  # for its turn
    STARTING = "starting"  # its process
    PLACING = "no room"  # on any node for now
    LOADING = "loading"  # its model
    READY = "ready"


def stages_of(
    details: Mapping[str, Any], spec: ClusterSpec, waiting: Container[str] = ()
) -> dict[str, Stage]:
    """By member, ranker and for the router: the stage of the furthest replica.

    `waiting` are Serve deployments with replicas for which no node has room.
    """
    deployments = details.get("deployments", {})
    names = {name: MEMBER_PREFIX + name for name in spec.members}
    names |= {ranker_part(name): RANKER_PREFIX + name for name in spec.rankers}
    names[ROUTER] = ROUTER
    stages = {
        part: _stage(deployments.get(deployment, {}).get("replicas", ()))
        for part, deployment in names.items()
    }
    placing = {part for part in stages if names[part] in waiting and stages[part] is Stage.STARTING}
    return stages | dict.fromkeys(placing, Stage.PLACING)


def failure_of(details: Mapping[str, Any]) -> tuple[str, str] | None:
    """The first part whose constructor raised, and what it said, however often Serve will retry."""
    for deployment, state in details.get("deployments", {}).items():
        message = state.get("message", "")
        if _FAILED in message:
            kind, _, name = deployment.partition("-")
            return (f"{kind} {name!r}" if name else kind), _reason(message)
    return None


def ranker_part(name: str) -> str:
    """What a ranker is called among the parts: a member may have the same name."""
    return f"ranker {name}"


def _stage(replicas: Any) -> Stage:
    stages = [_replica_stage(replica) for replica in replicas]
    order = list(Stage)
    return max(stages, key=order.index, default=Stage.WAITING)


def _replica_stage(replica: Mapping[str, Any]) -> Stage:
    state = getattr(replica["state"], "value", replica["state"])
    if state == "RUNNING":
        return Stage.READY
    return Stage.LOADING if replica.get("pid") else Stage.STARTING


def _reason(message: str) -> str:
    """Of a traceback in a traceback, what the innermost error said."""
    lines = [line.rstrip() for line in _ANSI.sub("", message).splitlines() if line.strip()]
    for line in reversed(lines):
        if found := _ERROR_LINE.fullmatch(line.strip()):
            words = found.group(1)
            return words[:-1] if words.count(")") > words.count("(") else words
    return lines[-1] if lines else "no reason given"
