"""Keys as a running router holds them: looked up by id, and read again when their file changes."""

from __future__ import annotations

import hmac
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cluster.access.caller import Caller
from cluster.access.keys import KeyEntry, hash_of, read_keys, split_key
from cluster.errors import SpecError, Unauthenticated

logger = logging.getLogger(__name__)

CHECK_INTERVAL_S = 1.0  # between two looks at the file

_FileState = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class _Held:
    salt: str
    hash: str
    expires_s: float | None  # since 1970
    caller: Caller

    @classmethod
    def of(cls, key_id: str, entry: KeyEntry) -> _Held:
        expires_s = None if entry.expires is None else entry.expires.timestamp()
        caller = Caller(key_id, entry.scope_set, entry.limits.to_limits())
        return cls(entry.salt, entry.hash, expires_s, caller)


_NOBODY = _Held(salt="0" * 32, hash="0" * 64, expires_s=None, caller=Caller())


class Keyring:
    """The keys of one file; a file that is broken later changes nothing but the log."""

    def __init__(
        self,
        path: str | Path,
        now_s: Callable[[], float] = time.time,
        ticks_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises SpecError for a file that cannot be read or is wrong."""
        self._path = Path(path)
        self._now_s = now_s
        self._ticks_s = ticks_s
        self._state = self._file_state()
        self._keys = self._read()
        self._looked_s = ticks_s()

    def caller_of(self, text: str) -> Caller:
        """Whose key it is; raises Unauthenticated.

        An unknown id, a wrong secret and a key whose time is over take the same steps and get the
        same words, so that nobody learns which ids there are.
        """
        self._look()
        key_id, secret = split_key(text)
        held = self._keys.get(key_id, _NOBODY)
        is_right = hmac.compare_digest(hash_of(held.salt, secret), held.hash)
        is_over = held.expires_s is not None and self._now_s() >= held.expires_s
        if not is_right or is_over:
            raise Unauthenticated(
                "INVALID_API_KEY",
                "the API key is unknown, revoked or expired; expected one that is valid",
            )
        return held.caller

    def _look(self) -> None:
        """Read the file again if it is another one now."""
        if self._ticks_s() - self._looked_s < CHECK_INTERVAL_S:
            return
        self._looked_s = self._ticks_s()
        state = self._file_state()
        if state == self._state:
            return
        self._state = state
        try:
            self._keys = self._read()
        except SpecError as error:
            logger.error("the API keys stay as they were: %s", error.message)
        else:
            logger.info("%d API keys from %s", len(self._keys), self._path)

    def _read(self) -> dict[str, _Held]:
        return {key_id: _Held.of(key_id, entry) for key_id, entry in read_keys(self._path).items()}

    def _file_state(self) -> _FileState | None:
        try:
            found = os.stat(self._path)
        except OSError:
            return None
        return found.st_ino, found.st_ctime_ns, found.st_size
