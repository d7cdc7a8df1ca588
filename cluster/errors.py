"""The one error tree.

    CuveeError
    ├── InvalidRequest      the caller's input is wrong; names the field
    │   └── SpecError       the same for a blend file; names the line as well
    ├── Unauthenticated     who calls cannot be told, or is nobody we know
    ├── PermissionDenied    who calls is known, and may not do this
    ├── NotFound            no such blend, member or model
    ├── Unsupported         valid, but this blend cannot do it
    ├── Overloaded          no room now; says when to come back
    ├── Unavailable         a member or the service cannot be reached
    │   ├── ReplicaLost     one replica is gone; another may take over
    │   └── MemberGone      a member has no replica left, and its blend does not wait
    ├── DeadlineExceeded    the caller's time is up
    └── InternalError       a defect of ours

Each error has a `reason`: an UPPER_SNAKE_CASE constant for machines. The table to gRPC status codes
is in `cluster.router.status`.
"""

from __future__ import annotations

import traceback


class CuveeError(Exception):
    """What Cuvée refuses or fails to do: a reason for machines, a message for people."""

    def __init__(self, reason: str, message: str, *, field: str = "") -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.field = field


class InvalidRequest(CuveeError):
    """The input is wrong: `field` says where; the message, what was given and what is right."""


class SpecError(InvalidRequest):
    """A blend file is wrong; the message begins with `file:line:`."""

    def __init__(self, reason: str, message: str, *, field: str = "", line: int = 0) -> None:
        super().__init__(reason, message, field=field)
        self.line = line


class Unauthenticated(CuveeError):
    """Who calls cannot be told; one text for every wrong key, whatever is wrong with it."""


class PermissionDenied(CuveeError):
    """Who calls is known, and may not do this."""


class NotFound(CuveeError):
    """What was named does not exist here."""


class Unsupported(CuveeError):
    """The request is well formed but this blend cannot serve it."""


class Overloaded(CuveeError):
    """No room now; try again after `retry_delay_s`."""

    def __init__(self, reason: str, message: str, *, retry_delay_s: float) -> None:
        super().__init__(reason, message)
        self.retry_delay_s = retry_delay_s


class Unavailable(CuveeError):
    """Something needed cannot be reached now."""


class ReplicaLost(Unavailable):
    """A member's replica went away; the sequence can be replayed on another."""


class MemberGone(Unavailable):
    """A member has no replica left, where the blend file says not to wait for another."""

    def __init__(self, reason: str, message: str, *, member: str) -> None:
        super().__init__(reason, message)
        self.member = member


class DeadlineExceeded(CuveeError):
    """The caller's deadline passed."""


class InternalError(CuveeError):
    """A defect on our side."""


def trace_of(error: BaseException) -> str:
    """Where an error comes from and of which kinds it and its causes are, for logs.

    Without its words: libraries put what they were given into them, and prompts and replies belong
    into no log.
    """
    told = []
    while error is not None:
        frames = "".join(traceback.format_tb(error.__traceback__))
        told.append(f"{type(error).__name__} from\n{frames}")
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return "".join(told).rstrip()
