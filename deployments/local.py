"""A whole cluster on this machine: Ray, Serve and one blend file's deployments, started and ended.

    with LocalCluster(spec) as cluster:
        grpc.insecure_channel(cluster.address)

Ray listens on loopback only and forgets about usage statistics, dashboards and worker logs on the
driver's terminal; what replicas log is in `cluster.log_folder`. Ray is imported when a cluster
starts, not before: importing this module costs nothing.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from cluster.access.hosts import address_of
from cluster.errors import CuveeError, InvalidRequest, Unavailable
from cluster.spec import ClusterSpec
from deployments.machine import check_port_is_free, num_cpus_needed
from deployments.processes import Process, await_end, descendants, sigterm_kept
from deployments.room import Note, RoomWatch, check_room
from deployments.stages import APPLICATION, RAY, ROUTER, Stage, failure_of, ranker_part, stages_of

OBJECT_STORE_BYTES = 80_000_000  # tokens do not pass through it
EXIT_GRACE_S = 5.0
POLL_S = 0.2
READY_TIMEOUT_S = 900.0

_RAY_CORE = ("gcs_server", "raylet")  # without them, nothing that is asked of Ray is answered

_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else a warning about a coming default
    # Despite its name, on Linux: the node's address becomes 127.0.0.1, and all of Ray listens there
    # only; otherwise it replaces a loopback address that is asked for, and listens everywhere.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "TOKENIZERS_PARALLELISM": "false",
}

Watch = Callable[[Mapping[str, Stage]], None]


class LocalCluster:
    """A spec served from this machine while the context lasts.

    With `ray_address` it joins a running Ray cluster instead of starting one, and leaves by
    removing what it deployed there.
    """

    def __init__(
        self,
        spec: ClusterSpec,
        *,
        ray_address: str | None = None,
        num_gpus: float | None = None,
        watch: Watch = lambda stages: None,
        note: Note = lambda words: None,
        ready_timeout_s: float = READY_TIMEOUT_S,
    ) -> None:
        self.spec = spec
        self.port = 0
        self.log_folder = ""
        self.ray_address = ""  # where others reach Ray
        self._ray_address = ray_address
        self._num_gpus = num_gpus
        self._watch = watch
        self._note = note
        self._room = RoomWatch(spec, note)
        self._ready_timeout_s = ready_timeout_s
        self._others = descendants()  # children that are not ours to end
        self._started: set[Process] = set()
        self._is_connected = False
        self._is_deployed = False

    @property
    def address(self) -> str:
        """Where the edge listens."""
        return address_of(self.spec.serving.host, self.port)

    def __enter__(self) -> LocalCluster:
        try:
            self._start()
        except BaseException:
            self.stop(drain=False)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self, *, drain: bool = True) -> None:
        """End everything; with `drain`, replies under way may finish. Stopping again is fine."""
        self._note_processes()
        if not (self._is_connected or self._started):
            return
        import ray

        if self._is_deployed and (drain or self._ray_address):
            self._is_deployed = False
            self._drain()
        if not self._is_ray_alive:  # else Ray would wait a minute for its own to come back
            await_end(self._started, 0)
        ray.shutdown()
        self._is_connected = False
        await_end(self._started, EXIT_GRACE_S)
        self._started.clear()

    def look_at_room(self) -> None:
        """Note replicas that lost their place, as when a node is gone, and wait for another."""
        with contextlib.suppress(Exception):  # whatever Ray is going through now, it is not ours
            self._room.look(application_details())

    def _drain(self) -> None:
        """Let Serve end our deployments in good order, for as long as there is a Ray to do it.

        A service manager sends SIGTERM to every process at once, Ray's own among them.
        """
        from ray import serve

        def delete() -> None:
            with contextlib.suppress(Exception):  # what cannot be drained is killed
                serve.delete(APPLICATION)

        deleting = threading.Thread(target=delete, daemon=True)
        deleting.start()
        while deleting.is_alive() and self._is_ray_alive:
            deleting.join(POLL_S)

    def _note_processes(self) -> None:
        """Remember what was started, also for when what started it has gone before."""
        self._started |= descendants() - self._others

    @property
    def _is_ray_alive(self) -> bool:
        core = [process for process in self._started if process.name in _RAY_CORE]
        return all(process.is_alive for process in core)

    def _start(self) -> None:
        check_port_is_free(self.spec.serving.host, self.spec.serving.port)
        self._report({RAY: Stage.STARTING})
        self._start_ray()
        self._note_processes()
        self._await_ready(self._deploy())
        self._note_processes()

    def _start_ray(self) -> None:
        set_environment()  # first of all: to count what is needed imports Ray
        options: dict[str, Any] = {"address": self._ray_address}
        if not self._ray_address:
            options = {
                "address": "local",
                "_node_ip_address": "127.0.0.1",
                "include_dashboard": False,
                "num_cpus": num_cpus_needed(self.spec),
                "num_gpus": self._num_gpus,
                "object_store_memory": OBJECT_STORE_BYTES,
            }
        address_info = connect(options)
        from ray import serve

        self._is_connected = True
        self.ray_address = address_info.get("gcs_address") or ""
        self.log_folder = os.path.join(address_info.get("session_dir") or "", "logs")
        check_room(self.spec, self._note)
        serve.start(proxy_location="Disabled")

    def _deploy(self) -> Any:
        """Ask Serve for all deployments at once; gives a handle on the router."""
        from ray import serve
        from ray.serve.api import RunTarget

        from deployments.app import application

        if APPLICATION in serve.status().applications:
            raise InvalidRequest(
                "ALREADY_SERVED", f"an application {APPLICATION!r} runs on this Ray cluster already"
            )
        self._is_deployed = True
        target = RunTarget(application(self.spec), name=APPLICATION, route_prefix=None)
        return serve.run_many([target], wait_for_applications_running=False)[0]

    def _await_ready(self, router: Any) -> None:
        """Follow Serve's view until a router says that every blend is served.

        Asked through Serve, which needs no key and no certificate of the edge's.
        """
        deadline_s = time.monotonic() + self._ready_timeout_s
        while True:
            details = application_details()
            no_room = self._room.look(details)
            stages = stages_of(details, self.spec, no_room)
            self._report({RAY: Stage.READY, **stages})
            if failure := failure_of(details):
                name, words = failure
                raise Unavailable("MEMBER_FAILED", f"{name} cannot start: {words}")
            if stages[ROUTER] is Stage.READY:
                status = router.status.remote().result(timeout_s=30)
                self.port = self.port or status["port"]
                if status["is_ready"]:
                    self._report({RAY: Stage.READY, **dict.fromkeys(stages, Stage.READY)})
                    return
            if time.monotonic() > deadline_s:
                waiting = [name for name, stage in stages.items() if stage is not Stage.READY]
                words = (
                    f"not ready after {self._ready_timeout_s:g} s; "
                    f"waiting for {', '.join(waiting) or f'an answer from {self.address}'}"
                )
                raise Unavailable("NOT_READY", "; ".join([words, *no_room.values()]))
            time.sleep(POLL_S)

    def _report(self, stages: Mapping[str, Stage]) -> None:
        rankers = map(ranker_part, self.spec.rankers)
        waiting = dict.fromkeys((*self.spec.members, *rankers, ROUTER), Stage.WAITING)
        self._watch({**waiting, **stages})


def set_environment() -> None:
    """What Ray reads when it is imported, and never again."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def connect(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """Start Ray or join one that runs, quietly; gives where it is. Raises Unavailable."""
    set_environment()
    import ray
    from ray import serve  # noqa: F401  # it sets its logger's level when it is imported

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    try:
        with sigterm_kept():
            context: Any = ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        words = f"Ray cannot be started: {error}"
        if options["address"] != "local":  # Ray looks for its token by itself only with `auto`
            words = f"{error}; if that cluster wants a token, set RAY_AUTH_MODE=token as well"
        raise Unavailable("RAY_UNAVAILABLE", words) from error
    info: Mapping[str, Any] = context.address_info
    return info


def application_details() -> Mapping[str, Any]:
    """Serve's view of our application, with each replica's process; serve.status() has none."""
    from ray.serve.context import _get_global_client

    client = _get_global_client()
    if client is None:
        raise CuveeError("SERVE_GONE", "Ray Serve has ended")
    details: Mapping[str, Any] = client.get_serve_details()["applications"].get(APPLICATION, {})
    return details
