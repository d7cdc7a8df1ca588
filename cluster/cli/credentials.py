"""What a client shows to a server and expects of it: the same flags for every command that calls.

Knows no gRPC; `cluster.cli.call` makes a channel of it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.access.hosts import is_loopback
from cluster.errors import InvalidRequest

_FLAGS: dict[str, Any] = {
    "api_key": Annotated[
        str, typer.Option(envvar="CUVEE_API_KEY", help="The API key; a file keeps it off screens.")
    ],
    "api_key_file": Annotated[
        Path | None,
        typer.Option(metavar="FILE", envvar="CUVEE_API_KEY_FILE", help="The API key's file."),
    ],
    "tls": Annotated[bool, typer.Option("--tls", help="Speak TLS, with this machine's CAs.")],
    "ca": Annotated[
        Path | None,
        typer.Option(metavar="FILE", envvar="CUVEE_CA", help="Speak TLS, with these CAs alone."),
    ],
    "client_cert": Annotated[
        Path | None,
        typer.Option(metavar="FILE", envvar="CUVEE_CLIENT_CERT", help="Show this certificate."),
    ],
    "client_key": Annotated[
        Path | None,
        typer.Option(metavar="FILE", envvar="CUVEE_CLIENT_KEY", help="The certificate's key."),
    ],
    "key_in_clear": Annotated[
        bool, typer.Option("--key-in-clear", help="Send the API key even without TLS.")
    ],
}
_DEFAULTS = {"api_key": "", "tls": False, "key_in_clear": False}


@dataclass(frozen=True, slots=True)
class Credentials:
    """What to show; all empty for a server on this machine that asks for nothing."""

    api_key: str = ""
    is_tls: bool = False
    authorities: bytes | None = None  # PEM; None: those of this machine
    certificate: bytes | None = None  # PEM, with its key
    certificate_key: bytes | None = None
    key_in_clear: bool = False

    def check(self, address: str) -> None:
        """Raise InvalidRequest rather than show a key to everybody on the way."""
        host = address.rpartition(":")[0].removeprefix("[").removesuffix("]")
        if self.api_key and not (self.is_tls or self.key_in_clear or is_loopback(host)):
            raise InvalidRequest(
                "KEY_IN_CLEAR",
                f"the API key would travel to {address} in clear text; expected --tls or --ca, "
                "or --key-in-clear where the way there is safe",
            )


current: ContextVar[Credentials] = ContextVar("credentials", default=Credentials())  # noqa: B039


def shows_credentials(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the flags above; `current` has what they say while it runs."""

    @wraps(command)
    def run(**given: Any) -> None:
        current.set(_read(**{name: given.pop(name) for name in _FLAGS}))
        command(**given)

    hints = dict(inspect.get_annotations(command, eval_str=True))
    own = [
        p.replace(annotation=hints[p.name]) for p in inspect.signature(command).parameters.values()
    ]
    flags = [
        inspect.Parameter(
            name,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            annotation=hint,
            default=_DEFAULTS.get(name),
        )
        for name, hint in _FLAGS.items()
    ]
    run.__signature__ = inspect.Signature([*own, *flags])  # type: ignore[attr-defined]
    run.__annotations__ = hints | _FLAGS
    return run


def _read(
    *,
    api_key: str,
    api_key_file: Path | None,
    tls: bool,
    ca: Path | None,
    client_cert: Path | None,
    client_key: Path | None,
    key_in_clear: bool,
) -> Credentials:
    if (client_cert is None) != (client_key is None):
        raise typer.BadParameter("give both or none", param_hint="--client-cert, --client-key")
    if api_key_file is not None and not api_key:
        api_key = _content(api_key_file, "--api-key-file").decode(errors="replace").strip()
    if not (api_key.isascii() and api_key.isprintable()):
        raise typer.BadParameter("a key has ASCII characters alone", param_hint="--api-key")
    return Credentials(
        api_key=api_key,
        is_tls=tls or ca is not None or client_cert is not None,
        authorities=_content(ca, "--ca") if ca else None,
        certificate=_content(client_cert, "--client-cert") if client_cert else None,
        certificate_key=_content(client_key, "--client-key") if client_key else None,
        key_in_clear=key_in_clear,
    )


def _content(file: Path, flag: str) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise typer.BadParameter(f"{file}: {error.strerror}", param_hint=flag) from None
