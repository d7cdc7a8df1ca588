"""Decides, token by token, how far one member's run goes.

Called on the engine's thread for every sampled token, so it is plain arithmetic on small strings.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from cluster.engine.types import Verdict
from cluster.members.base import Draw, RunEnd
from cluster.randomness import Purpose, uniform
from cluster.text.borders import Border, starts_span
from cluster.text.utf8 import Utf8Stream

_TAIL_CHARS = 80  # how much of the text before a token a border can depend on
_MAX_CHARACTER_TOKENS = 8  # a model that never completes a character is cut off here


class RunJudge:
    """Keeps tokens until the run is complete, the turn ends, or a border gives the word away."""

    def __init__(
        self,
        draw: Draw,
        *,
        seed: int,
        token_bytes: Sequence[bytes],
        end_ids: Collection[int],
        before: bytes,
    ) -> None:
        self.end: RunEnd | None = None
        self._draw = draw
        self._seed = seed
        self._token_bytes = token_bytes
        self._end_ids = end_ids
        self._num_kept = 0
        self._text = Utf8Stream()
        self._tail = self._text.push(before)[-_TAIL_CHARS:]

    def __call__(self, token: int) -> Verdict:
        """Judge the next sampled token."""
        ends_turn = token in self._end_ids
        return self.judge(b"" if ends_turn else self._token_bytes[token], ends_turn=ends_turn)

    def judge(self, piece: bytes, *, ends_turn: bool = False) -> Verdict:
        """Judge the next token by its bytes."""
        if self._is_border(piece, ends_turn) and not self._goes_on():
            self.end = RunEnd.BORDER
            return Verdict.DROP_AND_STOP
        if ends_turn:
            self.end = RunEnd.END_OF_TURN
            return Verdict.DROP_AND_STOP
        self._num_kept += 1
        self._tail = (self._tail + self._text.push(piece))[-_TAIL_CHARS:]
        if self._is_complete():
            self.end = RunEnd.COMPLETE
            return Verdict.KEEP_AND_STOP
        return Verdict.KEEP

    def hands_over(self, token: int) -> bool:
        """Whether a token drawn in doubt begins a span, so that the run ends before it."""
        doubt = self._draw.doubt
        if doubt is None or self._text.pending:
            return False
        if doubt.span_tokens:
            begins = (doubt.num_said + self._num_kept) % doubt.span_tokens == 0
        else:
            ends_turn = token in self._end_ids
            is_first = self._draw.begins_span and self._num_kept == 0
            piece = b"" if ends_turn else self._token_bytes[token]
            begins = is_first or self._is_border(piece, ends_turn)
        if begins:
            self.end = RunEnd.DOUBT
        return begins

    def _is_border(self, piece: bytes, ends_turn: bool) -> bool:
        if self._draw.border is Border.NONE or self._text.pending:
            return False
        if self._draw.begins_span and self._num_kept == 0:
            return False
        text = piece.decode("utf-8", "replace")
        return ends_turn or starts_span(self._draw.border, self._tail, text)

    def _goes_on(self) -> bool:
        begin, end = self._draw.share
        position = self._draw.position + self._num_kept
        return begin <= uniform(self._seed, Purpose.SPEAKER, position) < end

    def _is_complete(self) -> bool:
        excess = self._num_kept - self._draw.max_tokens
        if excess < 0:
            return False
        torn = self._draw.whole_characters and bool(self._text.pending)
        return not torn or excess >= _MAX_CHARACTER_TOKENS
