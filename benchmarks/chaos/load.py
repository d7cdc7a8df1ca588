"""Streams that never cease, each compared with its undisturbed twin."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import grpc

from cluster.client import Client, Patience
from cluster.client.blocking import Messages
from cluster.client.connection import CHANNEL_OPTIONS
from cluster.client.resumable import Resumable
from cluster.client.status import RichStatus
from cuvee.v1 import generation_pb2 as pb
from cuvee.v1 import generation_pb2_grpc

TIMEOUT_S = 240.0
_AFTER_FAILURE_S = 1.0  # as a client that heeds what it is told; else failures are all there is
PATIENCE = Patience(max_tries=60, total_s=180)
_NO_NAME = (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL)  # defects, not refusals
_UNNAMED = "unnamed "
_NUM_SEEDS = 4
_NUM_TOKENS = (24, 96)


@dataclass(frozen=True, slots=True)
class Ask:
    """One request; the same one always gives the same text."""

    blend: str
    seed: int
    num_tokens: int

    def message(self) -> pb.StreamGenerateRequest:
        """On the wire."""
        return pb.StreamGenerateRequest(
            blend=self.blend,
            prompt="It is a truth",
            sampling=pb.Sampling(seed=self.seed),
            stopping=pb.Stopping(max_tokens=self.num_tokens, ignore_eos=True),
        )


@dataclass
class Broken:
    """A stream that ended without its outcome."""

    ask: Ask
    reason: str
    resumable: Resumable
    text: str


@dataclass
class Tally:
    """What became of all streams."""

    finished: Counter[str] = field(default_factory=Counter)  # by blend
    resumed: int = 0  # of these, over a router's death
    taken_over: int = 0  # by another replica
    different: list[str] = field(default_factory=list)  # texts that are not their twin's
    broken: list[Broken] = field(default_factory=list)
    unnamed: list[str] = field(default_factory=list)  # failures that say nothing


def all_asks(blends: Sequence[str]) -> list[Ask]:
    """What is asked, some of it short and some of it long."""
    return [
        Ask(blend, seed, _NUM_TOKENS[seed % 2]) for blend in blends for seed in range(_NUM_SEEDS)
    ]


def twins(address: str, asks: Sequence[Ask]) -> dict[Ask, str]:
    """What each says undisturbed, one after another."""
    with Client(address) as client:
        return {
            ask: client.generate(
                "It is a truth",
                blend=ask.blend,
                seed=ask.seed,
                max_tokens=ask.num_tokens,
                ignore_eos=True,
                timeout_s=TIMEOUT_S,
            ).text
            for ask in asks
        }


class Streams:
    """So many at a time, until they are told to stop."""

    def __init__(self, address: str, twins: Mapping[Ask, str], seed: int, num: int) -> None:
        self.tally = Tally()
        self._twins = twins
        self._seed = seed
        self._num = num
        self._is_over = threading.Event()
        self._lock = threading.Lock()
        self._channel = grpc.insecure_channel(address, CHANNEL_OPTIONS)
        self._stub = generation_pb2_grpc.GenerationServiceStub(self._channel)

    def run(self) -> None:
        """Returns when the last stream that had begun by `stop` has ended."""
        with ThreadPoolExecutor(self._num) as pool:
            for worker in range(self._num):
                pool.submit(self._work, random.Random(self._seed * 1000 + worker))

    def stop(self) -> None:
        """Begin no more."""
        self._is_over.set()

    def resume_broken(self) -> list[str]:
        """Ask for the rest of every broken reply; gives what is wrong with the whole ones."""
        with ThreadPoolExecutor(self._num) as pool:
            found = list(pool.map(self._resume, self.tally.broken))
        self._channel.close()
        return [wrong for wrong in found if wrong]

    def _resume(self, broken: Broken) -> str:
        text, _, reason = self._stream(broken.resumable, broken.text)
        if reason:
            return f"{broken.ask}: {reason} again"
        return "" if text == self._twins[broken.ask] else f"{broken.ask}: another text"

    def _work(self, chance: random.Random) -> None:
        asks = list(self._twins)
        while not self._is_over.is_set():
            ask = chance.choice(asks)
            resumable = Resumable(ask.message(), PATIENCE)
            try:
                text, outcome, reason = self._stream(resumable)
            except Exception as error:  # no status at all is what this looks for
                with self._lock:
                    self.tally.unnamed.append(f"{ask}: {type(error).__name__}: {error}")
                continue
            with self._lock:
                self._note(ask, resumable, text, outcome, reason)
            if reason:
                self._is_over.wait(_AFTER_FAILURE_S)

    def _stream(self, resumable: Resumable, text: str = "") -> tuple[str, pb.Outcome | None, str]:
        """The whole text, the outcome if it was reached, else why it was not."""
        pieces, outcome = [text], None
        messages = Messages(lambda number: self._stub.StreamGenerate, resumable, TIMEOUT_S)
        try:
            for message in messages:
                pieces.append(message.text_delta)
                if message.HasField("outcome"):
                    outcome = message.outcome
        except grpc.RpcError as failure:
            status = RichStatus.of(failure)
            reason = status.reason or status.code.name
            if status.code in _NO_NAME:
                reason = f"{_UNNAMED}{status.code.name}: {status.message}"
            return "".join(pieces), None, reason
        return "".join(pieces), outcome, ""

    def _note(
        self, ask: Ask, resumable: Resumable, text: str, outcome: pb.Outcome | None, reason: str
    ) -> None:
        tally = self.tally
        if outcome is None:
            tally.broken.append(Broken(ask, reason, resumable, text))
            if reason.startswith(_UNNAMED):
                tally.unnamed.append(f"{ask}: {reason}")
            return
        tally.finished[ask.blend] += 1
        tally.resumed += resumable.num_streams > 1
        tally.taken_over += any(usage.leases > 1 for usage in outcome.usage.members)
        if text != self._twins[ask]:
            tally.different.append(f"{ask}: {text!r} instead of {self._twins[ask]!r}")
