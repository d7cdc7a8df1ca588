"""Who may call what: every method of the edge, and the scope that a caller needs for it.

A method that is not in the table is refused to everybody.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import grpc

from cluster.access.caller import ANYBODY, Caller, Scope, current_caller
from cluster.access.certificates import caller_of_certificate
from cluster.access.keyring import Keyring
from cluster.access.keys import bearer_key, split_key
from cluster.errors import PermissionDenied, Unauthenticated

if TYPE_CHECKING:  # at run time the class takes no arguments
    _Context = grpc.aio.ServicerContext[Any, Any]

logger = logging.getLogger(__name__)

STRANGER = Caller(scopes=frozenset())  # has shown nothing, and may do what anybody may

_GENERATION = "/cuvee.v1.GenerationService/"
_BLENDS = "/cuvee.v1.BlendService/"
_ADMIN = "/cuvee.v1.AdminService/"

OPEN = frozenset({"/grpc.health.v1.Health/Check"})  # probes have no key; names are not told there
SCOPE_BY_METHOD = {
    _GENERATION + "Generate": Scope.GENERATE,
    _GENERATION + "StreamGenerate": Scope.GENERATE,
    _GENERATION + "Score": Scope.GENERATE,
    _GENERATION + "CountTokens": Scope.GENERATE,
    _BLENDS + "ListBlends": Scope.GENERATE,
    _BLENDS + "GetBlend": Scope.GENERATE,
    _ADMIN + "GetStatus": Scope.ADMIN,
    "/grpc.health.v1.Health/List": Scope.GENERATE,
    "/grpc.health.v1.Health/Watch": Scope.GENERATE,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": Scope.GENERATE,
}

_AUTHORIZATION = "authorization"
_LOG_INTERVAL_S = 1.0
_MAX_ID_LENGTH = 40


class Guard:
    """Tells who calls, by key, by client certificate, or not at all, and what they may do."""

    def __init__(
        self,
        keyring: Keyring | None = None,
        *,
        by_certificate: bool = False,
        ticks_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._keyring = keyring
        self._by_certificate = by_certificate
        self._refusals = _Refusals(ticks_s)

    def enter(self, method: str, context: _Context) -> None:
        """Set `current_caller` for the call; raises Unauthenticated or PermissionDenied."""
        is_open = method in OPEN
        caller = self._caller(context, is_open=is_open)
        if not is_open:
            needed = SCOPE_BY_METHOD.get(method)
            if needed is None:
                raise PermissionDenied("METHOD_NOT_OPEN", f"{method} is open to nobody")
            _check_scope(needed, caller)
        current_caller.set(caller)

    def _caller(self, context: _Context, *, is_open: bool) -> Caller:
        if self._keyring is not None:
            given = [v for k, v in context.invocation_metadata() or () if k == _AUTHORIZATION]
            if is_open and not given:
                return STRANGER
            return self._caller_of_key(self._keyring, given)
        if self._by_certificate:
            return caller_of_certificate(context.auth_context())
        return ANYBODY

    def _caller_of_key(self, keyring: Keyring, given: list[str | bytes]) -> Caller:
        key = bearer_key(given)
        try:
            if not key:
                raise _no_key()
            return keyring.caller_of(key)
        except Unauthenticated:
            self._refusals.note(split_key(key)[0])
            raise


class _Refusals:
    """Says in the log that calls are refused: seldom, however many there are."""

    def __init__(self, ticks_s: Callable[[], float]) -> None:
        self._ticks_s = ticks_s
        self._next_s = 0.0
        self._num_refused = 0

    def note(self, key_id: str) -> None:
        """A call without a valid key; what it called its id is anybody's text."""
        self._num_refused += 1
        if self._ticks_s() < self._next_s:
            return
        self._next_s = self._ticks_s() + _LOG_INTERVAL_S
        shown = key_id if key_id.isascii() and key_id.isprintable() else ""
        logger.warning(
            "calls without a valid API key: %d; the last one's id: %r",
            self._num_refused,
            shown[:_MAX_ID_LENGTH],
        )
        self._num_refused = 0


def require(scope: Scope) -> None:
    """Raise Unauthenticated or PermissionDenied unless whoever calls now has the scope."""
    _check_scope(scope, current_caller.get())


def _check_scope(scope: Scope, caller: Caller) -> None:
    if scope in caller.scopes:
        return
    if caller is STRANGER:
        raise _no_key()
    has = ", ".join(sorted(has.value for has in caller.scopes)) or "none"
    raise PermissionDenied(
        "SCOPE_MISSING", f"expected a key with the scope {scope.value}; this one has: {has}"
    )


def _no_key() -> Unauthenticated:
    return Unauthenticated(
        "NO_API_KEY", "expected one API key, as metadata `authorization: Bearer KEY`"
    )
