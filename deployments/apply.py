"""`cuvee apply`: another blend file for a cluster that runs, without restarting what stays.

New models are deployed and known before the new blends take over; those that the file has no more
go after that.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console

from cluster.cli.output import print_json, print_line
from cluster.errors import InvalidRequest, Unavailable
from cluster.spec import ClusterSpec
from deployments.local import POLL_S, READY_TIMEOUT_S, Watch, application_details, connect
from deployments.progress import StartProgress
from deployments.room import Note, RoomWatch, check_room
from deployments.stages import APPLICATION, ROUTER, Stage, failure_of, stages_of

_CALL_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Change:
    """What became of one blend; a revision is empty where there is no such blend."""

    blend: str
    old: str
    new: str

    @property
    def words(self) -> str:
        """For people."""
        if self.old == self.new:
            return f"{self.new}  unchanged"
        return f"{self.old or 'none'} → {self.new or 'none'}"


def show_applied(spec: ClusterSpec, *, ray_address: str | None, as_json: bool) -> None:
    """Apply, with progress on stderr, and say what became of each blend."""
    with StartProgress(Console(stderr=True)) as progress:
        changed = apply(spec, ray_address=ray_address, watch=progress.watch, note=progress.note)
    if as_json:
        print_json(Console(), {"ok": True, "blends": [asdict(change) for change in changed]})
        return
    width = max(len(change.blend) for change in changed)
    for change in changed:
        print_line(Console(), f"{change.blend:<{width}}  {change.words}")


def apply(
    spec: ClusterSpec,
    *,
    ray_address: str | None,
    watch: Watch,
    note: Note = lambda words: None,
    ready_timeout_s: float = READY_TIMEOUT_S,
) -> list[Change]:
    """Serve the spec from the cluster that runs; returns once every router does.

    Raises Unavailable where none runs, InvalidRequest for what cannot change in place.
    """
    with _joined(ray_address or "auto"):
        status = _running()
        before = _spec_of(status)
        spec = spec.model_copy(update={"serving": _serving(before, status["port"], spec)})
        check_room(_together(spec, before), note)
        room = RoomWatch(spec, note)
        deadline_s = time.monotonic() + ready_timeout_s
        _deploy(spec, before)
        _await(lambda: _is_served(spec, watch, room), spec, deadline_s)
        _deploy(spec, spec)  # without those that are gone
        return changes(status["revisions"], _router_status()["revisions"])


def changes(before: Mapping[str, str], after: Mapping[str, str]) -> list[Change]:
    """Every blend of either, in the order of the newer one."""
    names = [*after, *(name for name in before if name not in after)]
    return [Change(name, before.get(name, ""), after.get(name, "")) for name in names]


@contextmanager
def _joined(address: str) -> Iterator[None]:
    """Connected to a Ray cluster that runs."""
    _check_listens(address)
    try:
        connect({"address": address})
    except Unavailable as error:
        if address != "auto":
            raise
        words = "no Ray cluster runs here; start one with cuvee up, or give --ray-address"
        raise Unavailable("NOT_RUNNING", words) from error
    import ray

    try:
        yield
    finally:
        ray.shutdown()


def _check_listens(address: str) -> None:
    """Say at once what Ray would find out after minutes."""
    host, _, port = address.rpartition(":")
    if not port.isdecimal():  # such as `auto`
        return
    try:
        socket.create_connection((host, int(port)), _CALL_TIMEOUT_S).close()
    except OSError as error:
        words = f"no Ray cluster listens at {address}: {error.strerror or error}"
        raise Unavailable("RAY_UNAVAILABLE", words) from None


def _running() -> dict[str, Any]:
    """What a router says of itself now."""
    from ray import serve
    from ray.serve.context import _get_global_client

    client: Any = _get_global_client(raise_if_no_controller_running=False)
    if client is None or APPLICATION not in serve.status().applications:
        raise Unavailable(
            "NOT_RUNNING",
            f"no application {APPLICATION!r} runs on this Ray cluster; start one with cuvee up",
        )
    return _router_status()


def _spec_of(status: Mapping[str, Any]) -> ClusterSpec:
    return ClusterSpec.model_validate_json(status["spec"])


def _router_status() -> dict[str, Any]:
    from ray import serve

    handle = serve.get_deployment_handle(ROUTER, APPLICATION)
    status: dict[str, Any] = handle.status.remote().result(timeout_s=_CALL_TIMEOUT_S)
    return status


def _serving(before: ClusterSpec, port: int, spec: ClusterSpec) -> Any:
    """The new file's serving, listening where the cluster does: that takes a restart to change."""
    old, new = before.serving, spec.serving
    for name, given, runs in (
        ("host", new.host, (old.host,)),
        ("port", new.port, (old.port, port)),
    ):
        if name in new.model_fields_set and given not in runs:
            raise InvalidRequest(
                "NEEDS_RESTART",
                f"got {given}, but the cluster listens at {old.host}:{port}; expected the same, "
                "or stop it and start it with cuvee up",
                field=f"serving.{name}",
            )
    for name in ("auth", "tls", "plaintext", "metrics", "drain_s", "max_request_bytes"):
        if getattr(new, name) != getattr(old, name):
            raise InvalidRequest(
                "NEEDS_RESTART",
                "got another one than the cluster was started with; expected the same, or stop it "
                "and start it with cuvee up (keys and certificates in the files may change)",
                field=f"serving.{name.removesuffix('_bytes')}",
            )
    return new.model_copy(update={"host": old.host, "port": old.port})


def _together(spec: ClusterSpec, before: ClusterSpec) -> ClusterSpec:
    """What runs while the one takes over from the other."""
    members = {**before.members, **spec.members}
    return spec.model_copy(
        update={"members": members, "rankers": {**before.rankers, **spec.rankers}}
    )


def _deploy(spec: ClusterSpec, before: ClusterSpec) -> None:
    """Ask Serve for the spec's deployments and for those on their way out."""
    from ray import serve
    from ray.serve.api import RunTarget

    from deployments.app import application_beside

    target = RunTarget(application_beside(spec, before), name=APPLICATION, route_prefix=None)
    serve.run_many([target], wait_for_applications_running=False)


def _is_served(spec: ClusterSpec, watch: Watch, room: RoomWatch) -> bool:
    """Whether each of the routers says that it serves the spec; raises when a member cannot."""
    details = application_details()
    if failure := failure_of(details):
        name, words = failure
        raise Unavailable("MEMBER_FAILED", f"{name} cannot start: {words}")
    stages = stages_of(details, spec, room.look(details))
    routers = details.get("deployments", {}).get(ROUTER, {}).get("replicas", ())
    wanted = {replica["replica_id"] for replica in routers}
    served = set()
    for _ in range(4 * len(wanted)):  # Serve chooses whom we ask
        status = _router_status()
        if _spec_of(status) == spec:
            served.add(status["replica"])
    is_done = len(wanted) >= spec.serving.routers.min and wanted <= served
    watch({**stages, ROUTER: Stage.READY if is_done else Stage.LOADING})
    return is_done


def _await(is_done: Callable[[], bool], spec: ClusterSpec, deadline_s: float) -> None:
    while not is_done():
        if time.monotonic() > deadline_s:
            models = ", ".join((*spec.members, *spec.rankers))
            raise Unavailable("NOT_READY", f"the routers do not know all of {models} yet")
        time.sleep(POLL_S)
