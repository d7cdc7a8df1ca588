"""Whole characters out of a stream of bytes: tokens may end in the middle of one."""

from __future__ import annotations

import codecs


class Utf8Stream:
    """Text so far as it is certain; invalid bytes become U+FFFD just as in one whole decode."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    @property
    def pending(self) -> bytes:
        """The beginning of a character whose rest has not come."""
        return self._decoder.getstate()[0]

    def push(self, data: bytes) -> str:
        """The characters that `data` completes."""
        return self._decoder.decode(data)

    def flush(self) -> str:
        """What is left at the end: U+FFFD for a character cut short, else nothing."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text


def is_complete(data: bytes) -> bool:
    """Whether no character is cut short at the end (bytes invalid for good do not count)."""
    stream = Utf8Stream()
    stream.push(data[-3:])  # a character is at most 4 bytes, so its cut beginning at most 3
    return not stream.pending
