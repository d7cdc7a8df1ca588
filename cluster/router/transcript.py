"""The truth of one generation: what was said, by whom, and what of it the caller may see.

Append-only. Members' caches are rebuilt from it; the caller sees it only up to what can no longer
turn out to be the beginning of a stop string, and in whole characters.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

from cluster.members.base import Form, Rank, Step, StepToken
from cluster.router.answers import ReplyToken, Update
from cluster.text.stops import StopMatcher
from cluster.text.utf8 import Utf8Stream


@dataclass(frozen=True, slots=True)
class _Held:
    """A token that the caller may not see yet; characters count from the reply's beginning."""

    token: ReplyToken
    begin: int  # characters that were complete before it
    end: int  # characters that it and all before it take part in
    torn: bytes  # the beginning, in tokens before it, of the character it goes on with

    def front(self, num_chars: int) -> bytes:
        """Its bytes that belong to the first `num_chars` characters."""
        stream, data = Utf8Stream(), self.token.token.bytes
        num_complete = self.begin + len(stream.push(self.torn))
        for n in range(len(data)):
            if num_complete >= num_chars:
                return data[:n]
            num_complete += len(stream.push(data[n : n + 1]))
        return data


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
        self._num_chars = 0  # complete
        self._num_visible = 0  # characters that the caller may see
        self._num_recalled = 0  # tokens that the caller has had from elsewhere, ...
        self._num_recalled_chars = 0  # ... and the characters that were complete with them

    @property
    def position(self) -> int:
        """How many tokens were drawn; the number of the next one."""
        return len(self._ids)

    @property
    def length(self) -> int:
        """How much was said, in what members exchange: tokens, or bytes for text and bytes."""
        return len(self._bytes) if self._form is Form.TEXT else len(self._ids)

    @property
    def is_torn(self) -> bool:
        """Whether members that exchange text must wait for the rest of a character."""
        return self._form is Form.TEXT and bool(self._utf8.pending)

    def ids(self, begin: int) -> tuple[int, ...]:
        """The token ids from a position on."""
        return tuple(self._ids[begin:])

    def tail(self, num_bytes: int) -> bytes:
        """The reply's last bytes."""
        return bytes(self._bytes[-num_bytes:])

    def bytes(self, begin: int, end: int) -> bytes:
        """The reply's bytes of a range."""
        return bytes(self._bytes[begin:end])

    def step(self, known: int, want: Rank, end: int) -> Step:
        """Brings a member that knows the beginning up to `end`, and asks it something."""
        known = min(known, end)
        if self._form is Form.TOKEN_IDS:
            return Step(known, want, token_ids=tuple(self._ids[known:end]))
        return Step(known, want, self.bytes(known, end))

    def recall(self, member: int, token: StepToken) -> None:
        """Append a token that the caller has from elsewhere: it is not shown again."""
        self.commit(member, [token])
        self.drawn[member] -= 1
        self._num_recalled = self.position
        self._num_recalled_chars = self._num_chars

    def commit(
        self,
        member: int,
        tokens: Sequence[StepToken],
        shares: tuple[tuple[str, float], ...] = (),
        bound: float = 0.0,
        weights: tuple[tuple[str, float], ...] = (),
    ) -> Update:
        """Append what a member, or several, drew; returns what the caller may see by now.

        After a stop string is complete, further tokens are not taken.
        """
        update = Update()
        for token in tokens:
            begin, torn = self._num_chars, self._utf8.pending
            text = self._utf8.push(token.bytes)
            name = self._members[member]
            reply_token = ReplyToken(name, self.position, token, shares, bound, weights)
            self._ids.append(token.id)
            self._bytes += token.bytes
            self.drawn[member] += 1
            if self._stops is None:
                update.text += text
                update.tokens.append(reply_token)
                continue
            self._num_chars += len(text)
            end = self._num_chars + bool(self._utf8.pending)
            self._held.append(_Held(reply_token, begin, end, torn))
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
        released, found = self._stops.push(rest)
        if found is None:
            released += self._stops.flush()
        self._release(released, update)
        if found is not None:
            self._end_at_stop(found, update)
        return update

    def _release(self, text: str, update: Update) -> None:
        """Let text go, and the tokens that are wholly inside what has gone."""
        update.text += text[max(0, self._num_recalled_chars - self._num_visible) :]
        self._num_visible += len(text)
        while self._held and self._held[0].end <= self._num_visible:
            held = self._held.popleft()
            if held.token.position >= self._num_recalled:
                update.tokens.append(held.token)

    def _end_at_stop(self, found: str, update: Update) -> None:
        """Drop what belongs to the stop string; of a token across its border, keep the front."""
        self.stop_string = found
        for held in self._held:
            if held.token.position < self._num_recalled:
                continue
            if front := held.front(self._num_visible):
                token = replace(held.token.token, bytes=front)
                update.tokens.append(replace(held.token, token=token))
        self._held.clear()
