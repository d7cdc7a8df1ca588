"""From the error tree to gRPC: one table, one interceptor that applies it to every call."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from cluster.errors import (
    CuveeError,
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    NotFound,
    Overloaded,
    Unavailable,
    Unsupported,
)

if TYPE_CHECKING:  # at run time these classes take no arguments
    _Handler = grpc.RpcMethodHandler[Any, Any]
    _Context = grpc.aio.ServicerContext[Any, Any]

logger = logging.getLogger(__name__)

DOMAIN = "cuvee"
_DETAILS_KEY = "grpc-status-details-bin"

# The first class that an error is an instance of decides.
STATUS_BY_ERROR: tuple[tuple[type[CuveeError], grpc.StatusCode], ...] = (
    (InvalidRequest, grpc.StatusCode.INVALID_ARGUMENT),
    (NotFound, grpc.StatusCode.NOT_FOUND),
    (Unsupported, grpc.StatusCode.FAILED_PRECONDITION),
    (Overloaded, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (Unavailable, grpc.StatusCode.UNAVAILABLE),
    (DeadlineExceeded, grpc.StatusCode.DEADLINE_EXCEEDED),
    (InternalError, grpc.StatusCode.INTERNAL),
)


def status_code(error: CuveeError) -> grpc.StatusCode:
    """The gRPC status of an error."""
    return next(code for cls, code in STATUS_BY_ERROR if isinstance(error, cls))


def rich_status(error: CuveeError) -> status_pb2.Status:
    """The error as google.rpc.Status: always a reason, the field and a retry delay where known."""
    details: list[Message] = [error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN)]
    if error.field:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=error.field, description=error.message, reason=error.reason
        )
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if isinstance(error, Overloaded):
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(round(error.retry_delay_s * 1000))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    packed = [any_pb2.Any() for _ in details]
    for target, detail in zip(packed, details, strict=True):
        target.Pack(detail)
    message = f"{error.field}: {error.message}" if error.field else error.message
    return status_pb2.Status(code=status_code(error).value[0], message=message, details=packed)


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Turns our errors into rich statuses, and anything else into INTERNAL without its text."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler | None:
        """Wrap unary and server-streaming handlers; others (reflection, health watch) pass."""
        handler = await continuation(handler_call_details)
        if handler is None or handler.request_streaming:
            return handler
        wrapped = _wrap_stream(handler.unary_stream) if handler.response_streaming else None
        make = (
            grpc.unary_stream_rpc_method_handler if wrapped else grpc.unary_unary_rpc_method_handler
        )
        return make(
            wrapped or _wrap_unary(handler.unary_unary),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )


def _wrap_unary(behavior: Any) -> Any:
    async def call(request: Any, context: _Context) -> Any:
        try:
            return await behavior(request, context)
        except Exception as error:
            await _abort(error, context)

    return call


def _wrap_stream(behavior: Any) -> Any:
    async def call(request: Any, context: _Context) -> AsyncIterator[Any]:
        try:
            async with aclosing(behavior(request, context)) as responses:
                async for response in responses:
                    yield response
        except Exception as error:
            await _abort(error, context)

    return call


async def _abort(error: Exception, context: _Context) -> NoReturn:
    if isinstance(error, grpc.aio.AbortError):
        raise error
    if not isinstance(error, CuveeError):
        if isinstance(error, asyncio.CancelledError):
            raise error
        logger.error("a handler failed", exc_info=error)
        error = InternalError("INTERNAL", "an unexpected error; the server's log has it")
    status = rich_status(error)
    await context.abort(
        status_code(error), status.message, ((_DETAILS_KEY, status.SerializeToString()),)
    )
