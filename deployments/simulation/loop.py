"""One member under a load that rises and falls, second by second.

Streams arrive at the rate that would keep the wanted number under way if nobody waited. A replica
carries its target of working leases at full speed; beyond that all streams are slower alike, and so
stay longer. Serve sees the mean load of its window and acts when a decision has stood for its
delay. A replica that finds no pod waits for Ray's autoscaler, a pod that finds no node for
Kubernetes'. What this leaves out: chance, prompts, caches, replicas lost, images not yet pulled.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from deployments.scaling import Demand, Goals, decide

RAY_LOOK_S = 5  # Ray's autoscaler looks for demand so often


@dataclass(frozen=True, slots=True)
class Load:
    """Streams under way: few, then many for a while, then few again; over and over."""

    few: float
    many: float
    rise_s: int = 60  # from few to many
    hold_s: int = 900  # at many, and as long at few
    reply_s: float = 15.0  # of one reply at full speed

    @property
    def period_s(self) -> int:
        """Of one turn."""
        return 2 * (self.rise_s + self.hold_s)

    def streams(self, at_s: int) -> float:
        """How many there should be."""
        since_s = at_s % self.period_s - self.hold_s
        if since_s < 0:
            return self.few
        risen = min(1.0, since_s / self.rise_s)
        fallen = min(1.0, max(0.0, (since_s - self.rise_s - self.hold_s) / self.rise_s))
        return self.few + (self.many - self.few) * (risen - fallen)


@dataclass(frozen=True, slots=True)
class Delays:
    """What the links of the loop take, in seconds."""

    replica_s: int = 60  # a process, its libraries, the model's weights
    pod_s: int = 30  # on a node that is there, the image with it
    node_s: int = 150  # until Kubernetes has another one
    num_spare_pods: int = 0  # for which there is room on nodes that are there


@dataclass(frozen=True, slots=True)
class Settings:
    """What can be chosen: the blend file's `autoscaling`, and when an empty pod goes."""

    min_replicas: int
    max_replicas: int
    target_leases: float
    window_s: int
    upscale_delay_s: int
    downscale_delay_s: int
    node_idle_s: int


@dataclass(slots=True)
class Course:
    """What became of it."""

    replicas: list[int] = field(default_factory=list)  # ready, each second
    slowness: list[tuple[float, float]] = field(default_factory=list)  # how much slower, streams
    pod_s: int = 0  # that are paid
    num_started: int = 0

    def slowness_of(self, share: float) -> float:
        """What this share of all stream time stayed below; 1: full speed."""
        in_order = sorted(self.slowness)
        wanted = share * sum(weight for _, weight in in_order)
        for slowness, weight in in_order:
            wanted -= weight
            if wanted <= 0:
                return slowness
        return 1.0


def simulate(
    load: Load, share: float, settings: Settings, delays: Delays, turns: int = 2
) -> Course:
    """A member that works for this share of all streams' time."""
    course, serve = Course(), _Serve(settings)
    pool = _Pool(settings, delays)
    streams = load.few
    for now_s in range(turns * load.period_s):
        pool.advance(now_s, serve.num_target)
        capacity = settings.target_leases * pool.num_ready
        speed = min(1.0, capacity / (streams * share)) if streams * share > 0 else 1.0
        course.slowness.append((1 / speed if speed > 0 else math.inf, streams))
        course.replicas.append(pool.num_ready)
        course.pod_s += pool.num_pods
        streams += (load.streams(now_s) - streams * speed) / load.reply_s
        serve.look(streams * share, streams, pool.num_ready)
    course.num_started = pool.num_started
    return course


class _Serve:
    """Decides, and waits out its delays as Serve does."""

    def __init__(self, settings: Settings) -> None:
        self.num_target = settings.min_replicas
        self._settings = settings
        self._seen: deque[float] = deque(maxlen=settings.window_s)
        self._stood_s = 0  # for how long more, or fewer, have been wanted
        self._wanted_more = False

    def look(self, load: float, calls: float, num_running: int) -> None:
        """Once a second."""
        settings = self._settings
        self._seen.append(load)
        mean = math.fsum(self._seen) / len(self._seen)
        demand, goals = Demand(mean, calls), Goals(settings.target_leases)
        wanted = decide(demand, goals, num_target=self.num_target, num_running=num_running)
        wanted = min(max(wanted, settings.min_replicas), settings.max_replicas)
        is_more = wanted > self.num_target
        stands = wanted != self.num_target and (is_more == self._wanted_more or not self._stood_s)
        self._stood_s = self._stood_s + 1 if stands else 0
        self._wanted_more = is_more
        delay_s = settings.upscale_delay_s if is_more else settings.downscale_delay_s
        if wanted != self.num_target and self._stood_s > delay_s:
            self.num_target, self._stood_s = wanted, 0


class _Pool:
    """Replicas in pods of their own: those that are ready, that start, and that wait for a pod."""

    def __init__(self, settings: Settings, delays: Delays) -> None:
        self.num_ready = settings.min_replicas
        self.num_pods = settings.min_replicas
        self.num_started = 0
        self._settings = settings
        self._delays = delays
        self._starting: list[int] = []  # replicas: when each is ready
        self._coming: list[int] = []  # pods: when each is there
        self._empty_since: list[int] = []  # pods without a replica, the latest last

    def advance(self, now_s: int, num_target: int) -> None:
        """A second more."""
        arrived = sum(at_s <= now_s for at_s in self._coming)
        self._coming = [at_s for at_s in self._coming if at_s > now_s]
        self.num_pods += arrived
        self._empty_since += [now_s] * arrived
        self.num_ready += sum(at_s <= now_s for at_s in self._starting)
        self._starting = [at_s for at_s in self._starting if at_s > now_s]
        self._fit(now_s, num_target)
        self._drop_empty(now_s)

    def _fit(self, now_s: int, num_target: int) -> None:
        missing = num_target - self.num_ready - len(self._starting)
        while missing > 0 and self._empty_since:
            self._empty_since.pop()
            self._starting.append(now_s + self._delays.replica_s)
            self.num_started += 1
            missing -= 1
        if now_s % RAY_LOOK_S == 0:
            for _ in range(missing - len(self._coming)):
                self._coming.append(now_s + self._pod_s())
        for _ in range(min(-missing, self.num_ready)):  # leaves at once: its streams move
            self.num_ready -= 1
            self._empty_since.append(now_s)

    def _pod_s(self) -> int:
        num_beyond = self.num_pods + len(self._coming) - self._settings.min_replicas
        has_room = num_beyond < self._delays.num_spare_pods
        return self._delays.pod_s + (0 if has_room else self._delays.node_s)

    def _drop_empty(self, now_s: int) -> None:
        late_s = now_s - self._settings.node_idle_s
        gone = [since_s for since_s in self._empty_since if since_s <= late_s]
        room = self.num_pods - self._settings.min_replicas
        for since_s in gone[: max(0, room)]:
            self._empty_since.remove(since_s)
            self.num_pods -= 1
