"""One model over several devices: this process is the first shard, its children are the others.

Each shard is a process that holds its part of every weight matrix and of the page pool, split by
transformers' own tensor-parallel plan, and runs every pass: the collectives within the pass make
the parts' results whole. So all shards must be told of the same passes, in the same order; the
first one has the engine and tells the others through pipes. Nothing is ever made good after a
failure: a shard that ends, or a pass that raises, leaves the others waiting within a collective,
so the replica is lost as a whole. When the first shard's process ends, however it does, the pipes
close, and that ends the others.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path

import torch

from cluster.engine.base import Chunk
from cluster.engine.pool import Copy
from cluster.errors import InternalError, Unavailable

READY = "ready"  # what a shard says before it joins the others; anything else is why it ends
END = b""  # the last message to a shard

_BACKENDS = {"cpu": "gloo", "cuda": "nccl"}
_LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}  # shards are on one node
_START_TIMEOUT_S = 120.0
_PASS_TIMEOUT_S = 1800.0  # reading weights at unlike speed counts as waiting for the first pass
_EXIT_GRACE_S = 5.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Loading:
    """What a shard loads; the same for all of them."""

    folder: Path
    dtype: str
    device: str  # its type: each shard has its own device of it
    kv_memory_bytes: int  # of each shard
    kv_dtype: str
    max_context: int | None
    num_threads: int | None
    page_size: int | None


@dataclass(frozen=True, slots=True)
class Start:
    """The first message to a shard."""

    shard: int
    num_shards: int
    store: Path  # a file, by which they find each other
    loading: Loading

    @property
    def device(self) -> torch.device:
        """The shard's own."""
        kind = self.loading.device
        return torch.device(kind) if kind == "cpu" else torch.device(kind, self.shard)


@dataclass(frozen=True, slots=True)
class Pass:
    """What every shard's runner does next: the copies, then the chunks."""

    chunks: Sequence[Chunk] = ()
    copies: Sequence[Copy] = ()


Message = Start | Pass


def join(start: Start) -> None:
    """Meet the other shards; returns when all are there."""
    for name, value in _LOOPBACK.items():
        os.environ.setdefault(name, value)
    torch.distributed.init_process_group(
        _BACKENDS[start.loading.device],
        init_method=f"file://{start.store}",
        rank=start.shard,
        world_size=start.num_shards,
        timeout=timedelta(seconds=_PASS_TIMEOUT_S),
        device_id=start.device if start.loading.device == "cuda" else None,
    )


class Shards:
    """The other shards, from their start to their end; told things by one thread at a time.

    A process can be the first shard of one model at a time.
    """

    def __init__(self, loading: Loading, num_shards: int) -> None:
        assert not torch.distributed.is_initialized(), "this process has shards already"
        self._on_lost: Callable[[], None] = lambda: None
        self.loss = ""  # why they have become useless
        self._lock = threading.Lock()
        self._is_closed = False
        self._pipes: list[Connection] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        self._folder = Path(tempfile.mkdtemp(prefix="cuvee-shards-"))
        try:
            store = self._folder / "store"
            starts = [Start(i, num_shards, store, loading) for i in range(num_shards)]
            for start in starts[1:]:
                self._start(start)
            self._await_ready()
            self.device = starts[0].device
            join(starts[0])
        except BaseException:
            self.close()
            raise
        threading.Thread(target=self._watch, name="cuvee-shards", daemon=True).start()

    @property
    def is_alive(self) -> bool:
        """Whether passes can be run."""
        return not (self.loss or self._is_closed)

    @property
    def pids(self) -> list[int]:
        """The processes of the other shards."""
        return [process.pid for process in self._processes]

    @contextlib.contextmanager
    def telling(self, message: Message) -> Iterator[None]:
        """Have the others do the same as the body; if anything raises, all are lost."""
        if not self.is_alive:
            raise Unavailable("SHARD_LOST", f"this replica has lost a shard: {self.loss}")
        try:
            told = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
            for pipe in self._pipes:
                pipe.send_bytes(told)
            yield
        except Exception as error:
            self._lose(f"{type(error).__name__}: {error}")
            raise

    def loaded(self, on_lost: Callable[[], None]) -> None:
        """All have met in every group there is. From now on `on_lost` is told, on any thread."""
        self._on_lost = on_lost
        shutil.rmtree(self._folder, ignore_errors=True)

    def close(self) -> None:
        """End the other shards and leave nothing of them."""
        self._is_closed = True
        for pipe in self._pipes:
            with contextlib.suppress(OSError):
                pipe.send_bytes(END)
        for process in self._processes:
            try:
                process.wait(_EXIT_GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for pipe in self._pipes:
            pipe.close()
        shutil.rmtree(self._folder, ignore_errors=True)
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()

    def _start(self, start: Start) -> None:
        ours, theirs = Pipe()
        self._pipes.append(ours)
        paths = os.pathsep.join(path for path in sys.path if path)
        command = [sys.executable, "-m", "cluster.engine.shard", str(theirs.fileno())]
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(),),
            env=os.environ | {"PYTHONPATH": paths, "LOCAL_RANK": str(start.shard)},
            start_new_session=True,  # a terminal's Ctrl-C is for the first shard to see to
        )
        self._processes.append(process)
        theirs.close()
        ours.send_bytes(pickle.dumps(start))

    def _await_ready(self) -> None:
        """Until each has imported everything: from then on they wait for each other."""
        for pipe in self._pipes:
            said = _said(pipe) if pipe.poll(_START_TIMEOUT_S) else "it does not start"
            if said != READY:
                raise InternalError("SHARD_LOST", said)

    def _watch(self) -> None:
        with contextlib.suppress(OSError):  # closed by us
            for pipe in wait(self._pipes):
                assert isinstance(pipe, Connection)
                self._lose(_said(pipe))

    def _lose(self, why: str) -> None:
        with self._lock:
            if not self.is_alive:
                return
            self.loss = why
        _log.error("a shard is lost: %s", why)
        self._on_lost()


def _said(pipe: Connection) -> str:
    try:
        return pipe.recv_bytes().decode()
    except (EOFError, ConnectionError):
        return "its process has ended"
