"""The rivals' process: every way to do without Cuvée, with the same models, threads and prompts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from multiprocessing.connection import Connection

import torch

from cluster.merging.cache import folder_of
from cluster.spec import MemberSpec
from deployments.bench import engines, rivals
from deployments.bench.children import answer_blocking
from deployments.bench.engines import BareEngine
from deployments.bench.figures import Reply
from deployments.bench.loading import Loaded
from deployments.bench.peers import ActorPeers, PipedPeers
from deployments.bench.races import ContestPlan, Race, Reading, Rival
from deployments.bench.rivals import PlainModel
from deployments.bench.workload import Job

_READ_BYTES = 256 << 20  # more than caches hold
_NUM_READS = 7


def race_until_closed(plan: ContestPlan, pipe: Connection) -> None:
    """Says first that it is there."""
    torch.set_num_threads(plan.num_threads)
    contest = Contest(plan)
    pipe.send("ready")
    try:
        answer_blocking(pipe, contest.answer)
    finally:
        contest.close()


class Contest:
    """Models are loaded when they are first asked for: the warm-up's round."""

    def __init__(self, plan: ContestPlan) -> None:
        self._plan = plan
        self._specs = {n: MemberSpec.model_validate(m) for n, m in plan.members.items()}
        self._plains: dict[str, PlainModel] = {}
        self._engines: dict[str, BareEngine] = {}
        self._peers: dict[tuple[str, ...], PipedPeers | ActorPeers] = {}

    def answer(self, question: Race | None) -> Loaded | Reading:
        """A race's replies; without one, how fast memory is read."""
        if question is None:
            return self.reading()
        others_s = self._others_cpu_s()
        before_s = time.process_time()
        replies = self.run(question)
        spent_s = time.process_time() - before_s + self._others_cpu_s() - others_s
        return Loaded(replies, spent_s)

    def run(self, race: Race) -> list[Reply]:
        """One rival's replies."""
        names, jobs, num_tokens = list(race.subject.weights), race.jobs, race.num_tokens
        weights = list(race.subject.weights.values())
        match race.rival:
            case Rival.GENERATE:
                return [rivals.generate(self._plain(names[0]), job, num_tokens) for job in jobs]
            case Rival.LOOP:
                plain = self._plain(names[0])
                return [r for job in jobs for r in rivals.decode(plain, [job], num_tokens)]
            case Rival.BATCH:
                return rivals.decode(self._plain(names[0]), jobs, num_tokens)
            case Rival.MIXTURE:
                plains = [self._plain(name) for name in names]
                return [
                    rivals.mix(plains, job, num_tokens, self._speakers(race, job)) for job in jobs
                ]
            case Rival.AVERAGE:
                plains = [self._plain(name) for name in names]
                return [rivals.average(plains, job, num_tokens, weights) for job in jobs]
            case Rival.ENGINE:
                engine = self._engine(names[0])
                return [r for job in jobs for r in engine.decode([job], num_tokens)]
            case Rival.ENGINE_BATCH:
                return self._engine(names[0]).decode(jobs, num_tokens)
            case Rival.OWN_AVERAGE:
                return [self._own(names, job, num_tokens, weights) for job in jobs]
            case Rival.OWN_PARALLEL:
                return [self._parallel(names, job, num_tokens, weights) for job in jobs]

    def reading(self) -> Reading:
        """Sum a large array several times, the fastest counts."""
        data = torch.ones(_READ_BYTES // 4)
        best_s = float("inf")
        for _ in range(_NUM_READS):
            begin_s = time.perf_counter()
            torch.dot(data[: len(data) // 2], data[len(data) // 2 :])
            best_s = min(best_s, time.perf_counter() - begin_s)
        weights = {name: self._plain(name).num_bytes for name in self._specs}
        return Reading(_READ_BYTES / best_s, weights)

    def close(self) -> None:
        """End the processes that it started."""
        for peers in self._peers.values():
            peers.close()

    def _own(
        self, names: Sequence[str], job: Job, num_tokens: int, weights: Sequence[float]
    ) -> Reply:
        found = [self._engine(name) for name in names]
        prompt = found[0].text.render(job.prompt, None)
        with engines.one_after_another(found) as tell:
            return engines.average(tell, prompt, job, num_tokens, weights)

    def _parallel(
        self, names: Sequence[str], job: Job, num_tokens: int, weights: Sequence[float]
    ) -> Reply:
        key = tuple(names)
        if key not in self._peers:
            specs = [self._specs[name] for name in names]
            address = self._plan.ray_address
            self._peers[key] = ActorPeers(specs, address) if address else PipedPeers(specs)
        peers = self._peers[key]
        prompt = self._engine(names[0]).text.render(job.prompt, None)
        peers.begin()
        return engines.average(peers.tell, prompt, job, num_tokens, weights)

    def _speakers(self, race: Race, job: Job) -> list[int]:
        names = list(race.subject.weights)
        positions = range(race.num_tokens)
        return [names.index(race.subject.speaker(job.seed, position)) for position in positions]

    def _plain(self, name: str) -> PlainModel:
        if name not in self._plains:
            spec = self._specs[name]
            folder = folder_of(spec, download=False)
            same = (known for known in self._plains.values() if known.is_from(folder, spec.dtype))
            self._plains[name] = next(same, None) or PlainModel(folder, spec.dtype)
        return self._plains[name]

    def _engine(self, name: str) -> BareEngine:
        if name not in self._engines:
            self._engines[name] = BareEngine(self._specs[name])
        return self._engines[name]

    def _others_cpu_s(self) -> float:
        return sum(peers.cpu_s() for peers in self._peers.values())
