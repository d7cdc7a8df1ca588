"""From a failed call to what went wrong: the rich status, and the error of the one tree."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import grpc
from google.rpc import error_details_pb2, status_pb2

from cluster.errors import CuveeError, Overloaded, Unavailable
from cluster.router.status import STATUS_BY_ERROR

_DETAILS_KEY = "grpc-status-details-bin"
_ERRORS = {code: cls for cls, code in STATUS_BY_ERROR}
_ERRORS[grpc.StatusCode.CANCELLED] = Unavailable  # by the server: it is going away


@dataclass(frozen=True, slots=True)
class RichStatus:
    """What a failed call says; reason and field are empty, and the delay 0, where it does not."""

    code: grpc.StatusCode
    message: str
    reason: str = ""
    field: str = ""
    retry_delay_s: float = 0.0

    @classmethod
    def of(cls, error: grpc.RpcError) -> RichStatus:
        """Read the trailing metadata's google.rpc.Status, or make the best of a bare one."""
        call = cast(grpc.Call, error)
        reason, field, retry_delay_s = "", "", 0.0
        raw = dict(call.trailing_metadata() or ()).get(_DETAILS_KEY, b"")
        status = status_pb2.Status()
        if isinstance(raw, bytes):
            status.ParseFromString(raw)
        for packed in status.details:
            info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
            retry = error_details_pb2.RetryInfo()
            if packed.Unpack(info):
                reason = info.reason
            elif packed.Unpack(bad) and bad.field_violations:
                field = bad.field_violations[0].field
            elif packed.Unpack(retry):
                retry_delay_s = retry.retry_delay.ToMilliseconds() / 1000
        return cls(call.code(), call.details() or "", reason, field, retry_delay_s)

    def error(self) -> CuveeError:
        """The same as an error; without a reason of its own its code is one."""
        reason, message = self.reason or self.code.name, self.message or self.code.name
        message = message.removeprefix(f"{self.field}: ") if self.field else message
        kind = _ERRORS.get(self.code, CuveeError)
        if issubclass(kind, Overloaded):
            return kind(reason, message, retry_delay_s=self.retry_delay_s)
        return kind(reason, message, field=self.field)


@contextmanager
def translated() -> Iterator[None]:
    """Calls in here raise errors of the tree."""
    try:
        yield
    except grpc.RpcError as error:
        raise RichStatus.of(error).error() from error
