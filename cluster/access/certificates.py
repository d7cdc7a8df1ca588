"""The edge's certificate, read again when its files change, and whom a client's one names."""

from __future__ import annotations

import logging
import os
import ssl
from collections.abc import Iterable, Mapping
from pathlib import Path

import grpc

from cluster.access.caller import Caller, Scope
from cluster.errors import SpecError, Unauthenticated
from cluster.spec.serving import TlsSpec

logger = logging.getLogger(__name__)

_COMMON_NAME = "x509_common_name"
_MAX_NAME_LENGTH = 64


class Certificates:
    """What the edge shows; each new connection gets what the files hold then.

    Files that do not fit each other, such as a new certificate whose key is still to be written,
    change nothing but the log.
    """

    def __init__(self, tls: TlsSpec) -> None:
        """Raises SpecError for files that cannot be read or do not fit each other."""
        self._tls = tls
        self._state = self._files_state()
        self._first = self._read()

    def to_credentials(self) -> grpc.ServerCredentials:
        """For a server's port."""
        return grpc.dynamic_ssl_server_credentials(
            self._first,
            self._renewed,  # type: ignore[arg-type]  # None: no change, says gRPC's own text
            require_client_authentication=self._tls.client_ca is not None,
        )

    def _renewed(self) -> grpc.ServerCertificateConfiguration | None:
        """What has changed since the last connection; gRPC asks, on a thread of its own."""
        state = self._files_state()
        if state == self._state:
            return None
        try:
            found = self._read()
        except SpecError as error:
            logger.error("the certificate stays as it was: %s", error.message)
            return None
        self._state = state
        logger.info("a new certificate from %s", self._tls.certificate)
        return found

    def _read(self) -> grpc.ServerCertificateConfiguration:
        _check_pair(self._tls)
        pair = (_content(self._tls.key), _content(self._tls.certificate))
        authorities = _content(self._tls.client_ca) if self._tls.client_ca else None
        return grpc.ssl_server_certificate_configuration([pair], authorities)

    def _files_state(self) -> tuple[tuple[int, int] | None, ...]:
        files = (self._tls.certificate, self._tls.key, self._tls.client_ca)
        return tuple(_state(file) for file in files if file)


def caller_of_certificate(auth_context: Mapping[str, Iterable[bytes]]) -> Caller:
    """Whom the client's certificate names; raises Unauthenticated where it names nobody."""
    names = [name.decode("utf-8", "replace") for name in auth_context.get(_COMMON_NAME, ())]
    name = "".join(c for c in "".join(names[:1]) if c.isprintable())[:_MAX_NAME_LENGTH]
    if not name:
        raise Unauthenticated(
            "NO_CERTIFICATE", "expected a client certificate with a common name in its subject"
        )
    return Caller(f"cn:{name}", frozenset({Scope.GENERATE}))


def _check_pair(tls: TlsSpec) -> None:
    """Refuse what gRPC would refuse without a reason."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(tls.certificate, tls.key, password=lambda: "")
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise SpecError(
            "TLS_UNUSABLE",
            f"{tls.certificate} and {tls.key} are no certificate and its key: {_words(error)}",
            field="serving.tls",
        ) from None
    if tls.client_ca is not None:
        try:
            context.load_verify_locations(tls.client_ca)
        except (OSError, ValueError) as error:
            raise SpecError(
                "TLS_UNUSABLE",
                f"{tls.client_ca} has no certificates of authorities: {_words(error)}",
                field="serving.tls.client_ca",
            ) from None


def _words(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error) or "not readable"


def _content(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise SpecError("TLS_UNUSABLE", f"{path}: {error.strerror}", field="serving.tls") from None


def _state(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns
