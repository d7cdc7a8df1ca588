"""Speaking to a server, and telling a person why it said no.

Knows the public API and google.rpc's error details; knows no command.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
import typer
from google.protobuf import json_format
from google.protobuf.message import Message
from rich.console import Console
from rich.text import Text

from cluster.cli.credentials import Credentials, current
from cluster.cli.output import print_json, print_line
from cluster.client.connection import CHANNEL_OPTIONS
from cluster.client.status import RichStatus
from cluster.errors import CuveeError
from cuvee.v1 import blend_pb2, blend_pb2_grpc, generation_pb2_grpc

EXIT_REFUSED = 1
EXIT_INTERRUPTED = 130

_NO_CREDENTIALS = Credentials()
_HINTS = {
    "UNKNOWN_BLEND": "`cuvee blends` lists what is served",
    "UNKNOWN_MEMBER": "`cuvee blends NAME` lists its members",
    "MEMBER_UNAVAILABLE": "its replicas may still be loading, or be restarting; try again soon",
    "NO_API_KEY": "give one with --api-key-file FILE, or in CUVEE_API_KEY",
    "INVALID_API_KEY": "ask whoever runs the server for a new one: `cuvee keys new NAME`",
    "SCOPE_MISSING": "ask for a key that has it: `cuvee keys new NAME --scope …`",
    "NO_CHAT_TEMPLATE": "this blend continues text: leave --chat out",
}
_HINTS_BY_CODE = {
    grpc.StatusCode.UNIMPLEMENTED: "is this a Cuvée server of this version?",
    grpc.StatusCode.DEADLINE_EXCEEDED: "give it more time with --timeout, or ask for fewer tokens",
}


class Server:
    """A channel to a server and the stubs on it."""

    def __init__(self, address: str, credentials: Credentials = _NO_CREDENTIALS) -> None:
        """Raises InvalidRequest rather than send a key in clear text over a network."""
        credentials.check(address)
        self.address = address
        self._channel = _channel(address, credentials, CHANNEL_OPTIONS)
        channel = self._channel
        if credentials.api_key:
            channel = grpc.intercept_channel(channel, _Bearer(credentials.api_key))
        self.generation = generation_pb2_grpc.GenerationServiceStub(channel)
        self.blends = blend_pb2_grpc.BlendServiceStub(channel)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._channel.close()

    def blend(self, name: str, timeout_s: float | None = None) -> blend_pb2.Blend:
        """One blend; the empty name means the default one."""
        request = blend_pb2.GetBlendRequest(name=name)
        return self.blends.GetBlend(request, timeout=timeout_s).blend


class _Bearer(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):
    """Shows the API key with every call."""

    def __init__(self, api_key: str) -> None:
        self._shown = ("authorization", f"Bearer {api_key}")

    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        return continuation(self._with_key(details), request)

    def intercept_unary_stream(self, continuation: Any, details: Any, request: Any) -> Any:
        return continuation(self._with_key(details), request)

    def _with_key(self, details: Any) -> Any:
        return details._replace(metadata=[*(details.metadata or ()), self._shown])


def _channel(
    address: str, credentials: Credentials, options: Sequence[tuple[str, int]]
) -> grpc.Channel:
    if not credentials.is_tls:
        return grpc.insecure_channel(address, options)
    shown = grpc.ssl_channel_credentials(
        credentials.authorities, credentials.certificate_key, credentials.certificate
    )
    return grpc.secure_channel(address, shown, options)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a call failed, in words."""

    code: str
    message: str
    reason: str = ""
    field: str = ""
    hint: str = ""

    @classmethod
    def of(cls, error: grpc.RpcError, address: str) -> Refusal:
        """Read a failed call's rich status, or make the best of a bare one."""
        status = RichStatus.of(error)
        code, words = status.code, status.message
        if status.retry_delay_s:
            hint = f"try again in {status.retry_delay_s:g} s"
        else:
            hint = _HINTS.get(status.reason) or _HINTS_BY_CODE.get(code, "")
        if code is grpc.StatusCode.UNAVAILABLE and not status.reason:
            words, hint = _unreachable(address, words)
        return cls(code.name, words or code.name, status.reason, status.field, hint)

    def print(self, *, as_json: bool) -> None:
        """To stderr in words, or to stdout as JSON."""
        if as_json:
            content = {"ok": False, "code": self.code, "reason": self.reason}
            content |= {"field": self.field, "error": self.message, "hint": self.hint}
            print_json(Console(), content)
            return
        console = Console(stderr=True)
        print_line(console, Text.assemble(("error: ", "bold red"), self.message))
        named = {"reason": self.reason, "field": self.field, "hint": self.hint}
        for label, value in named.items():
            if value and not (label == "field" and f"{value}: " in self.message):
                print_line(console, Text.assemble((f"  {label:<7} ", "dim"), value))


def _unreachable(address: str, words: str) -> tuple[str, str]:
    if ("onnect" in words and "refused" in words) or "failed to connect" in words:
        return (
            f"no server answers at {address}",
            "start one with `cuvee up`, or name another with --server HOST:PORT",
        )
    return f"the connection to {address} was lost: {words}", "is the server still running?"


class Cancellable(Protocol):
    """A call, or several in turn."""

    def cancel(self) -> object:
        """End it soon; any thread may."""


@contextmanager
def cancelled_by_ctrl_c(call: Cancellable) -> Iterator[None]:
    """Ctrl-C cancels the call, and only when that has come back raises KeyboardInterrupt.

    Raised at once, it would as a rule come up inside gRPC's stream, between taking a lock and being
    ready to give it back; the channel's thread then waits for that lock, and so does the next call.
    """
    is_pressed = threading.Event()

    def cancel(*_: object) -> None:
        is_pressed.set()
        threading.Thread(target=call.cancel).start()  # this thread may be holding those locks

    usual = signal.default_int_handler  # on SIGTERM as well, where a command has put it there
    taken = [s for s in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(s) is usual]
    if threading.current_thread() is not threading.main_thread():
        taken = []
    for signum in taken:
        signal.signal(signum, cancel)
    try:
        yield
    except grpc.RpcError:
        if not is_pressed.is_set():
            raise
    finally:
        for signum in taken:
            signal.signal(signum, usual)
        call.cancel()
    if is_pressed.is_set():
        raise KeyboardInterrupt


@contextmanager
def calling(address: str, *, as_json: bool = False) -> Iterator[Server]:
    """A server to call; failures are printed and become exit codes."""
    try:
        with Server(address, current.get()) as server:
            yield server
    except grpc.RpcError as error:
        Refusal.of(error, address).print(as_json=as_json)
        raise typer.Exit(EXIT_REFUSED) from None
    except CuveeError as error:
        print_error(error, as_json=as_json)
        raise typer.Exit(EXIT_REFUSED) from None
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None


def print_error(error: CuveeError, *, as_json: bool = False) -> None:
    """An error of our own side."""
    Refusal("", error.message, error.reason, error.field).print(as_json=as_json)


def to_mapping(message: Message) -> dict[str, Any]:
    """A message as JSON, under the names of the proto files and with every key present."""
    return json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def say(words: str) -> None:
    """A remark beside the answer, on stderr."""
    print_line(Console(file=sys.stderr), Text(words, "dim"))
