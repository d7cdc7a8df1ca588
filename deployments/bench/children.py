"""Processes of a benchmark: they say one thing when they are ready, then answer questions."""

from __future__ import annotations

import asyncio
import inspect
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Generic, TypeVar

from cluster.errors import CuveeError, InternalError

_CPUCLOCK_SCHED = 2  # Linux: processor time of all threads, in nanoseconds
_END_S = 10.0
COUNTS = "counts"  # the question when no other is given

A = TypeVar("A")
P = TypeVar("P")


def cpu_seconds(pid: int) -> float:
    """What a process has used so far; as clock_getcpuclockid(3) does, which Python lacks."""
    return time.clock_gettime(~pid << 3 | _CPUCLOCK_SCHED)


class Child(Generic[A]):
    """A process that said something when it was ready and answers questions until it is stopped."""

    def __init__(
        self, target: Callable[[P, Connection], None], plan: P, *, has_children: bool = False
    ) -> None:
        """`has_children`: it starts processes of its own, and ends them when its pipe closes."""
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_run, args=(target, plan, theirs), daemon=not has_children
        )
        self._process.start()
        theirs.close()

    def __enter__(self) -> Child[A]:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process.pid is not None
        return self._process.pid

    def address(self) -> str:
        """Where it listens, once it does; asked once."""
        return str(self._received())

    def ask(self, question: object = COUNTS) -> A:
        """Its answer; raises what it raised."""
        self.send(question)
        return self.receive()

    def send(self, question: object) -> None:
        """Ask, and wait for the answer later."""
        self._pipe.send(question)

    def receive(self) -> A:
        """The answer to what was sent."""
        answer: A = self._received()
        return answer

    def stop(self) -> None:
        """End it."""
        self._pipe.close()
        self._process.join(_END_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _received(self) -> Any:
        try:
            said = self._pipe.recv()
        except EOFError:
            words = f"a process of the benchmark has ended, code {self._process.exitcode}"
            raise InternalError("BENCH_PROCESS_LOST", words) from None
        if isinstance(said, Exception):
            raise said
        return said


def _run(target: Callable[[P, Connection], None], plan: P, pipe: Connection) -> None:
    """What cannot begin is told to the parent, who asks for the address."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    try:
        target(plan, pipe)
    except KeyboardInterrupt:  # the parent got it too, and closes what there is to close
        sys.exit(130)
    except Exception as error:
        pipe.send(_portable(error))


async def answer_until_closed(pipe: Connection, answer: Callable[[Any], Any]) -> None:
    """Answer questions as they come, one at a time, until the other end closes.

    `answer` may be a coroutine function; what it raises goes back as the answer.
    """
    questions: asyncio.Queue[Any] = asyncio.Queue()
    closed = object()

    def read() -> None:
        try:
            questions.put_nowait(pipe.recv())
        except EOFError:
            loop.remove_reader(pipe.fileno())
            questions.put_nowait(closed)

    loop = asyncio.get_running_loop()
    loop.add_reader(pipe.fileno(), read)
    while (question := await questions.get()) is not closed:
        try:
            found = answer(question)
            pipe.send(await found if inspect.isawaitable(found) else found)
        except Exception as error:
            pipe.send(_portable(error))


def answer_blocking(pipe: Connection, answer: Callable[[Any], Any]) -> None:
    """The same for a process that has no event loop, and does one thing at a time."""
    while True:
        try:
            question = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(answer(question))
        except Exception as error:
            pipe.send(_portable(error))


def _portable(error: Exception) -> CuveeError:
    """An error that can be pickled, whatever it was made from."""
    reason = getattr(error, "reason", "BENCH_FAILED")
    return _Told(str(reason), f"{type(error).__name__}: {error}")


class _Told(CuveeError):
    """An error of another process, in its words."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _Told, (self.reason, self.message)
