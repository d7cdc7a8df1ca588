"""From the error tree to gRPC: one table, one interceptor that applies it to every call."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

from cluster.errors import (
    CuveeError,
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    NotFound,
    Overloaded,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
    Unsupported,
    trace_of,
)

if TYPE_CHECKING:  # at run time these classes take no arguments
    _Handler = grpc.RpcMethodHandler[Any, Any]
    _Context = grpc.aio.ServicerContext[Any, Any]

logger = logging.getLogger(__name__)

DOMAIN = "cuvee"
_DETAILS_KEY = "grpc-status-details-bin"
RECEIVE_TIMEOUT_S = 30.0  # for a client to send its next message, once it has opened a call

Enter = Callable[[str, "_Context"], None]  # raises where a call to that method may not go on

# The first class that an error is an instance of decides.
STATUS_BY_ERROR: tuple[tuple[type[CuveeError], grpc.StatusCode], ...] = (
    (InvalidRequest, grpc.StatusCode.INVALID_ARGUMENT),
    (Unauthenticated, grpc.StatusCode.UNAUTHENTICATED),
    (PermissionDenied, grpc.StatusCode.PERMISSION_DENIED),
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
    """Turns our errors into rich statuses, and anything else into INTERNAL without its text.

    Every call first passes `enter`, before any of its messages is read. Therefore all handlers
    become ones that read a stream: gRPC reads the one message of others before it asks anybody,
    waits for it without end, and calls one that cannot be parsed an UNKNOWN error.
    """

    def __init__(self, enter: Enter, receive_timeout_s: float = RECEIVE_TIMEOUT_S) -> None:
        self._enter = enter
        self._receive_timeout_s = receive_timeout_s

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler | None:
        """Wrap a handler of any of the four kinds."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method

        def enter(context: _Context) -> None:
            self._enter(method, context)

        receive = _Receiver(handler.request_streaming, self._receive_timeout_s)
        behavior = handler.unary_unary or handler.unary_stream
        behavior = behavior or handler.stream_unary or handler.stream_stream
        if inspect.isasyncgenfunction(behavior):
            wrapped = _wrap_generator(behavior, enter, receive)
        else:
            wrapped = _wrap_coroutine(behavior, enter, receive)
        make = (
            grpc.stream_stream_rpc_method_handler
            if handler.response_streaming
            else grpc.stream_unary_rpc_method_handler
        )
        return make(
            wrapped,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )


class _Receiver:
    """What a handler is given: one message, or all as they come; each within its time."""

    def __init__(self, is_streaming: bool, timeout_s: float) -> None:
        self._is_streaming = is_streaming
        self._timeout_s = timeout_s

    async def __call__(self, messages: AsyncIterator[Any]) -> Any:
        if self._is_streaming:
            return self._all(messages)
        try:
            return await self._next(messages)
        except StopAsyncIteration:
            raise InvalidRequest("NO_MESSAGE", "expected one message, got none") from None

    async def _all(self, messages: AsyncIterator[Any]) -> AsyncIterator[Any]:
        while True:
            try:
                message = await self._next(messages)
            except StopAsyncIteration:
                return
            yield message

    async def _next(self, messages: AsyncIterator[Any]) -> Any:
        try:
            return await asyncio.wait_for(anext(messages), self._timeout_s)
        except TimeoutError:
            raise DeadlineExceeded(
                "NO_MESSAGE", f"no message came within {self._timeout_s:g} s"
            ) from None
        except DecodeError:
            raise InvalidRequest(
                "MALFORMED_MESSAGE", "the message cannot be parsed; is this the right API version?"
            ) from None


def _wrap_coroutine(behavior: Any, enter: Callable[[_Context], None], receive: _Receiver) -> Any:
    """For one response, and for handlers that write several by themselves."""

    async def call(requests: AsyncIterator[Any], context: _Context) -> Any:
        try:
            enter(context)
            return await behavior(await receive(requests), context)
        except Exception as error:
            await _abort(error, context)

    return call


def _wrap_generator(behavior: Any, enter: Callable[[_Context], None], receive: _Receiver) -> Any:
    async def call(requests: AsyncIterator[Any], context: _Context) -> AsyncIterator[Any]:
        try:
            enter(context)
            async with aclosing(behavior(await receive(requests), context)) as responses:
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
        logger.error("a handler failed: %s", trace_of(error))
        error = InternalError("INTERNAL", "an unexpected error; the server's log has it")
    status = rich_status(error)
    await context.abort(
        status_code(error), status.message, ((_DETAILS_KEY, status.SerializeToString()),)
    )
