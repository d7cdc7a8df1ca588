"""One sequence's reply in its member's token ids, as the engine is to have them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from cluster.errors import InternalError
from cluster.members.base import Form, Step
from cluster.text.member import MemberText

TAIL_BYTES = 320  # enough for the characters a border can depend on


def digest_of(ids: Iterable[int]) -> int:
    """64 bits, equal for equal ids."""
    data = b"".join(token.to_bytes(4, "little") for token in ids)
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest())


class Reply:
    """A pure function of the transcript and of the member's own tokens since its run began.

    With Form.TOKEN_IDS the ids are the transcript's. With Form.TEXT they are the member's canonical
    ids of the text up to where its run began, then the run's own.
    """

    def __init__(self, form: Form, text: MemberText) -> None:
        self.ids: list[int] = []
        self._form = form
        self._text = text
        self._bytes = bytearray()  # of Form.TEXT: the reply's
        self._canonical_text = ""  # the text whose canonical ids ...
        self._canonical_ids: list[int] = []  # ... are these

    def apply(self, step: Step) -> int:
        """Bring the ids up to date; returns how many of those the engine has still stand."""
        is_text = self._form is Form.TEXT
        known = len(self._bytes) if is_text else len(self.ids)
        if step.base > known:
            raise InternalError("TRANSCRIPT_GAP", f"step keeps {step.base} of {known} known")
        if is_text:
            return self._apply_text(step)
        self.ids[step.base :] = step.token_ids
        return step.base

    def add(self, ids: Iterable[int]) -> None:
        """Append what the member drew or is to score."""
        for token in ids:
            self.ids.append(token)
            if self._form is Form.TEXT:
                self._bytes += self._text.token_bytes[token]

    def tail(self) -> bytes:
        """The reply's last bytes."""
        if self._form is Form.TEXT:
            return bytes(self._bytes[-TAIL_BYTES:])
        return b"".join(self._text.token_bytes[token] for token in self.ids[-TAIL_BYTES:])

    def _apply_text(self, step: Step) -> int:
        self._bytes[step.base :] = step.text
        text = self._bytes.decode("utf-8", "replace")
        keep, tail = self._text.canonical.extend(self._canonical_text, self._canonical_ids, text)
        self._canonical_text = text
        self._canonical_ids[keep:] = tail
        # What the member sampled itself is often canonical already: the engine finds that out.
        self.ids[keep:] = self._canonical_ids[keep:]
        self.add(step.token_ids)
        return keep
