"""Who said which characters of a streamed text.

Text and tokens travel side by side: text in whole characters, tokens as raw bytes that may end
inside one, and with stop strings the text runs ahead of the tokens. The text is what is shown; the
tokens only say whose it is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

from cluster.text.utf8 import Utf8Stream

Run = tuple[str, str]  # a member's name and what it said; the name is empty where nobody claims it


class Runs:
    """Aligns text with the tokens it came from; a character goes to the member completing it."""

    def __init__(self) -> None:
        self._utf8 = Utf8Stream()
        self._claims: deque[Run] = deque()
        self._text = ""  # not claimed yet
        self._last = ""  # who drew the latest token

    def push(self, text: str, tokens: Iterable[tuple[str, bytes]]) -> list[Run]:
        """New text and tokens in; out comes what is both said and claimed, neighbours joined."""
        self._text += text
        for member, data in tokens:
            self._claims.append((member, self._utf8.push(data)))
            self._last = member
        return _joined(self._settle())

    def finish(self) -> list[Run]:
        """The rest; text that no token claims goes to the last one who spoke."""
        self._claims.append((self._last, self._utf8.flush()))
        rest = list(self._settle())
        if self._text:
            rest.append((self._last, self._text))
            self._text = ""
        return _joined(rest)

    def _settle(self) -> Iterator[Run]:
        while self._claims and self._text:
            member, claim = self._claims.popleft()
            settled, self._text = self._text[: len(claim)], self._text[len(claim) :]
            if len(settled) < len(claim):
                self._claims.appendleft((member, claim[len(settled) :]))
            if settled:
                yield member, settled


def _joined(runs: Iterable[Run]) -> list[Run]:
    joined: list[Run] = []
    for member, text in runs:
        if joined and joined[-1][0] == member:
            joined[-1] = (member, joined[-1][1] + text)
        else:
            joined.append((member, text))
    return joined
