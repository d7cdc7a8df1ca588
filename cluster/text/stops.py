"""Stop strings in a stream of text."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.errors import InvalidRequest


class StopMatcher:
    """Finds the stop string that is complete first, wherever chunks begin and end.

    The first to be complete, not the first to begin: then a stream ends as soon as it can, and
    nobody waits for a longer string that may never come. Of several complete at once, the longest
    wins. Only what may be the beginning of a stop string is held back.
    """

    def __init__(self, stop_strings: Sequence[str]) -> None:
        if "" in stop_strings:
            raise InvalidRequest(
                "EMPTY_STOP_STRING",
                "a stop string is empty; give at least one character",
                field="stop",
            )
        self._stops = tuple(dict.fromkeys(stop_strings))
        self._beginnings = {stop[:n] for stop in self._stops for n in range(1, len(stop))}
        self._max_held = max((len(stop) for stop in self._stops), default=1) - 1
        self._held = ""
        self._matched: str | None = None

    def push(self, text: str) -> tuple[str, str | None]:
        """The text that may go out now, and the stop string if one is complete.

        What comes before the stop string goes out; it and all after it are dropped.
        """
        if self._matched is not None:
            return "", self._matched
        text = self._held + text
        found = [(at + len(stop), at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            _, at, self._matched = min(found)
            self._held = ""
            return text[:at], self._matched
        num_held = min(self._max_held, len(text))
        while num_held and text[-num_held:] not in self._beginnings:
            num_held -= 1
        safe = len(text) - num_held
        self._held = text[safe:]
        return text[:safe], None

    def flush(self) -> str:
        """What was held back, now that nothing follows."""
        held, self._held = self._held, ""
        return held
