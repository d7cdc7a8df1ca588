"""The one table from errors to gRPC statuses: complete, and rich in details."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest
from google.rpc import error_details_pb2

from cluster.errors import CuveeError, InvalidRequest, MemberGone, NotFound, Overloaded, SpecError
from cluster.router.status import DOMAIN, STATUS_BY_ERROR, rich_status, status_code


def descendants(cls: type[CuveeError]) -> Iterator[type[CuveeError]]:
    for child in cls.__subclasses__():
        yield child
        yield from descendants(child)


def make(cls: type[CuveeError]) -> CuveeError:
    if issubclass(cls, Overloaded):
        return cls("SOME_REASON", "some words", retry_delay_s=1.5)
    if issubclass(cls, MemberGone):
        return cls("SOME_REASON", "some words", member="austen")
    return cls("SOME_REASON", "some words")


@pytest.mark.parametrize("cls", list(descendants(CuveeError)))
def test_every_error_has_a_status_and_a_reason(cls: type[CuveeError]) -> None:
    error = make(cls)
    assert any(isinstance(error, known) for known, _ in STATUS_BY_ERROR)
    assert status_code(error) not in (grpc.StatusCode.OK, grpc.StatusCode.UNKNOWN)
    status = rich_status(error)
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (info.reason, info.domain) == ("SOME_REASON", DOMAIN)
    assert status.code == status_code(error).value[0]


def test_no_class_hides_a_later_one_of_the_table() -> None:
    for i, (cls, _) in enumerate(STATUS_BY_ERROR):
        assert not any(issubclass(cls, earlier) for earlier, _ in STATUS_BY_ERROR[:i])


def test_overload_says_when_to_come_back() -> None:
    status = rich_status(Overloaded("FULL", "full", retry_delay_s=1.5))
    retry = error_details_pb2.RetryInfo()
    assert status.details[-1].Unpack(retry)
    assert retry.retry_delay.ToTimedelta().total_seconds() == 1.5


@pytest.mark.parametrize("cls", [InvalidRequest, SpecError, NotFound])
def test_a_field_is_named_in_the_message_and_in_the_details(cls: type[CuveeError]) -> None:
    status = rich_status(cls("WRONG", "got 1; expected 2", field="sampling.top_p"))
    assert status.message == "sampling.top_p: got 1; expected 2"
    found = error_details_pb2.BadRequest()
    assert status.details[1].Unpack(found)
    (violation,) = found.field_violations
    assert (violation.field, violation.reason) == ("sampling.top_p", "WRONG")
