"""The truth of one generation: what was said, by whom, and what of it the caller may see.

Append-only. Members' caches are rebuilt from it; the caller sees it only up to what can no longer
turn out to be the beginning of a stop string, and in whole characters.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

from cluster.members.base import Form, StepToken
from cluster.router.requests import ReplyToken, Update
from cluster.text.stops import StopMatcher
from cluster.text.utf8 import Utf8Stream


@dataclass(slots=True)
class _Held:
    """A token whose text is not released yet."""

    token: ReplyToken
    text: str  # the characters that it completes
    num_released: int = 0  # of these

    @property
    def num_left(self) -> int:
        return len(self.text) - self.num_released


class Transcript:
    """One reply under way."""

    def __init__(self, members: Sequence[str], form: Form, stop: Sequence[str]) -> None:
        self.drawn = [0] * len(members)  # tokens by member
        self.stop_string = ""
        self._members = members
        self._form = form
        self._ids: list[int] = []
        self._bytes = bytearray()
        self._utf8 = Utf8Stream()
        self._stops = StopMatcher(stop) if stop else None
        self._held: deque[_Held] = deque()

    @property
    def position(self) -> int:
        """How many tokens were drawn; the number of the next one."""
        return len(self._ids)

    @property
    def length(self) -> int:
        """How much was said, in what members exchange: tokens, or bytes for Form.TEXT."""
        return len(self._ids) if self._form is Form.TOKEN_IDS else len(self._bytes)

    @property
    def is_torn(self) -> bool:
        """Whether members that exchange text must wait for the rest of a character."""
        return self._form is Form.TEXT and bool(self._utf8.pending)

    def ids(self, begin: int) -> tuple[int, ...]:
        """The token ids from a position on."""
        return tuple(self._ids[begin:])

    def bytes(self, begin: int, end: int) -> bytes:
        """The reply's bytes of a range."""
        return bytes(self._bytes[begin:end])

    def commit(self, member: int, tokens: Sequence[StepToken]) -> Update:
        """Append what a member drew; returns what the caller may see by now.

        After a stop string is complete, further tokens are not taken.
        """
        update = Update()
        for token in tokens:
            text = self._utf8.push(token.bytes)
            reply_token = ReplyToken(self._members[member], self.position, token)
            self._ids.append(token.id)
            self._bytes += token.bytes
            self.drawn[member] += 1
            if self._stops is None:
                update.text += text
                update.tokens.append(reply_token)
                continue
            self._held.append(_Held(reply_token, text))
            released, found = self._stops.push(text)
            self._release(released, update)
            if found is not None:
                self._end_at_stop(found, update)
                break
        return update

    def finish(self) -> Update:
        """What was held back, once nothing can follow."""
        update = Update()
        rest = self._utf8.flush()
        if self._stops is None:
            update.text = rest
            return update
        if self._held:
            self._held[-1].text += rest
        released, found = self._stops.push(rest)
        if found is None:
            released += self._stops.flush()
        self._release(released, update)
        if found is not None:
            self._end_at_stop(found, update)
        update.tokens.extend(held.token for held in self._held)
        self._held.clear()
        return update

    def _release(self, text: str, update: Update) -> None:
        """Let text go, and the tokens that are wholly inside what has gone."""
        update.text += text
        remaining = len(text)
        while self._held and remaining >= self._held[0].num_left:
            held = self._held.popleft()
            remaining -= held.num_left
            update.tokens.append(held.token)
        if remaining:
            self._held[0].num_released += remaining

    def _end_at_stop(self, found: str, update: Update) -> None:
        """Drop what belongs to the stop string; of a token across its border, keep the front."""
        self.stop_string = found
        if self._held and self._held[0].num_released:
            held = self._held[0]
            front = held.text[: held.num_released].encode()
            token = replace(held.token.token, bytes=front)
            update.tokens.append(replace(held.token, token=token))
        self._held.clear()
