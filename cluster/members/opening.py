"""What all sequences of a replica have in common: how they open, hold a step, fail and close."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from cluster.engine.types import (
    EngineLoad,
    EngineTimes,
    Output,
    Prefill,
    Rank,
    Sample,
    Score,
    Work,
    WorkEnd,
)
from cluster.errors import CuveeError, InternalError, InvalidRequest, trace_of
from cluster.members.base import (
    Emit,
    Event,
    Failed,
    MemberInfo,
    Opened,
    Prompt,
    RunEnd,
    SequenceStart,
    Step,
    StepEvent,
)
from cluster.members.reply import digest_of
from cluster.text.member import MemberText

_log = logging.getLogger(__name__)


class EngineFront(Protocol):
    """What a replica needs of the engine's thread."""

    def open(self) -> int:
        """A new sequence."""

    def submit(self, work: Work) -> None:
        """Begin a work."""

    def cancel(self, sequence: int) -> None:
        """End the sequence's work soon."""

    def close(self, sequence: int) -> None:
        """Forget the sequence."""

    def stop(self) -> None:
        """End the thread."""

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""

    @property
    def times(self) -> EngineTimes:
        """What its time went to so far."""

    def load(self) -> EngineLoad:
        """How busy it is now."""


class ReplicaSequence(ABC):
    """One sequence: its prompt, the step held or under way, and whether the router waits."""

    def __init__(
        self,
        member: MemberInfo,
        text: MemberText,
        engine: EngineFront,
        start: SequenceStart,
        emit: Emit,
        on_close: Callable[[int], object],
    ) -> None:
        self.id = engine.open()
        self.is_open = True  # it was not closed, from either side
        self._member = member
        self._text = text
        self._engine = engine
        self._start = start
        self._emit = emit
        self._on_close = on_close
        self._prompt_ids: list[int] = []
        self._is_ready = False  # the prompt is rendered
        self._submitted = False  # the engine has the prompt
        self._prefilling = False
        self._step: Step | None = None  # held until the prompt is rendered and prefilled
        self._opening: asyncio.Task[None] | None = None
        self._is_owed = True  # the router waits for the opening, or for a step's end

    # -- the router's calls ---------------------------------------------------------------------

    def begin(self) -> None:
        """Prepare off the loop: a long prompt takes milliseconds, a grammar too."""
        self._opening = asyncio.create_task(self._open())

    def step(self, step: Step) -> None:
        """Begin a step, or hold it until the prompt is ready."""
        self._is_owed = True
        if not self._is_ready or self._prefilling:
            self._step = step
        else:
            self._run(step)

    def cancel(self) -> None:
        """End the running step soon."""
        if self._step is not None:
            self._step = None
            self._tell(StepEvent([], RunEnd.CANCELLED))
        else:
            self._engine.cancel(self.id)

    def close(self) -> None:
        """Forget the sequence and free its cache."""
        if self._opening is not None:
            self._opening.cancel()
        if self.is_open:
            self.is_open = False
            self._engine.close(self.id)
            self._on_close(self.id)

    def lose(self, error: CuveeError) -> None:
        """Close the sequence from this side; the router hears of it if it waits for something."""
        self.close()
        if self._is_owed:
            self._tell(Failed(error))

    # -- opening --------------------------------------------------------------------------------

    async def _open(self) -> None:
        with self._failing("PROMPT_FAILED"):
            ids = await asyncio.to_thread(self._prepare)
            self._prompt_ids, self._is_ready = ids, True
            is_scored = self._start.score_prompt
            self._tell(Opened(len(ids), digest_of(ids) if is_scored else 0))
            if self._step is not None:
                self._take_held_step()
            elif self._start.prefill:
                # Ranked, the prompt costs the first draw after it no pass of its own.
                self._submit(0, [], Rank(None, num_top=1) if is_scored else Prefill())
                self._prefilling = True

    def _prepare(self) -> list[int]:
        """Everything that the first step needs; the prompt's ids."""
        return self._render(self._start.prompt)

    def _render(self, prompt: Prompt) -> list[int]:
        ids = self._text.render(prompt.text, prompt.messages)
        room = self._start.max_prompt_tokens
        if len(ids) > room:
            raise InvalidRequest(
                "PROMPT_TOO_LONG",
                f"the prompt has {len(ids)} tokens for member {self._member.member!r}; "
                f"at most {room} fit",
                field="prompt" if prompt.messages is None else "chat",
            )
        return ids

    def _take_held_step(self) -> None:
        step, self._step = self._step, None
        if step is not None:
            self._run(step)

    # -- steps ----------------------------------------------------------------------------------

    @abstractmethod
    def _begin_step(self, step: Step) -> None:
        """Begin a step, now that the prompt is ready."""

    @abstractmethod
    def _go_on(self, output: Output) -> None:
        """Take what one forward pass gave the step under way."""

    def _run(self, step: Step) -> None:
        with self._failing("STEP_FAILED"):
            self._begin_step(step)

    def _submit(self, num_kept: int, ids: list[int], want: Sample | Score | Rank | Prefill) -> None:
        """Ask the engine about the reply `ids`, of which it has the first `num_kept` already."""
        if self._submitted:
            work = Work(self.id, len(self._prompt_ids) + num_kept, ids[num_kept:], want)
        else:
            self._submitted = True
            if self._start.score_prompt and not isinstance(want, Prefill):
                want.num_scored = len(self._prompt_ids) - 1 + len(ids)
            work = Work(self.id, 0, self._prompt_ids + ids, want)
        self._engine.submit(work)

    def on_output(self, output: Output) -> None:
        """Pass on what one forward pass gave; called on the event loop."""
        with self._failing("OUTPUT_FAILED"):
            if output.end is WorkEnd.FAILED:
                self._tell(Failed(output.cause or InternalError("ENGINE_FAILED", output.error)))
            elif not self._prefilling:
                self._go_on(output)
            else:
                self._prefilling = output.end is None
                self._tell(_costs(output))
                if not self._prefilling:
                    self._take_held_step()

    @contextmanager
    def _failing(self, reason: str) -> Iterator[None]:
        """What goes wrong in here fails this sequence, and neither the others nor their stream."""
        try:
            yield
        except CuveeError as error:
            self._tell(Failed(error))
        except Exception as error:
            _log.error("a sequence failed: %s", trace_of(error))
            self._tell(Failed(InternalError(reason, f"{type(error).__name__}: {error}")))

    def _tell(self, event: Event) -> None:
        if not isinstance(event, StepEvent) or event.end is not None:
            self._is_owed = self._step is not None
        self._emit(event)


def _costs(output: Output) -> StepEvent:
    return StepEvent(
        [],
        None,
        output.num_passes,
        output.num_processed,
        output.num_cached,
        news_logprobs=output.scored,
    )
