"""What a person sees while a cluster starts: a live line per part, or plain lines in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from deployments.stages import RAY, ROUTER, Stage

_TITLES = {RAY: "Ray", ROUTER: "router"}
_STYLES = {Stage.READY: "green", Stage.WAITING: "dim"}


class StartProgress:
    """Follows the stages of a starting cluster on stderr."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._start_s = clock()
        self._seen: dict[str, Stage] = {}
        self._tasks: dict[str, TaskID] = {}
        self._progress = Progress(
            SpinnerColumn(finished_text="[green]✓[/]"),
            TextColumn("{task.description}"),
            TextColumn("{task.fields[stage]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )

    def __enter__(self) -> StartProgress:
        if self._console.is_terminal:
            self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._console.is_terminal:
            self._progress.stop()

    @property
    def elapsed_s(self) -> float:
        """Since the beginning."""
        return self._clock() - self._start_s

    def note(self, words: str) -> None:
        """A line that stays."""
        self._console.print(f"! {words}", markup=False, highlight=False, soft_wrap=True)

    def watch(self, stages: Mapping[str, Stage]) -> None:
        """Show what has changed."""
        width = max(len(_TITLES.get(part, part)) for part in stages)
        parts = sorted(stages, key=lambda part: (part != RAY, part != ROUTER))
        for part in parts:
            stage, seen = stages[part], self._seen.get(part)
            if stage is seen:
                continue
            self._seen[part] = stage
            title = _TITLES.get(part, part).ljust(width)
            if self._console.is_terminal:
                self._update(part, title, stage)
            elif stage is not Stage.WAITING:
                line = f"{self.elapsed_s:6.1f} s  {title}  {stage.value}"
                self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _update(self, part: str, title: str, stage: Stage) -> None:
        if part not in self._tasks:
            self._tasks[part] = self._progress.add_task(title, total=1, start=False, stage="")
        style = _STYLES.get(stage, "")
        words = f"[{style}]{stage.value:<8}[/]" if style else f"{stage.value:<8}"
        task = self._tasks[part]
        if stage is not Stage.WAITING:
            self._progress.start_task(task)  # a started one keeps its time
        self._progress.update(task, stage=words, completed=int(stage is Stage.READY))
