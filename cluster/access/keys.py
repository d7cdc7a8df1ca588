"""The key file: who may call, for what, until when; written by `cuvee keys`, read by routers.

A key's text is `cuvee_<id>_<secret>`; the file has a hash of the secret, never the secret.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import yaml
from pydantic import AwareDatetime, Field, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from cluster.access.caller import KeyLimits, Scope
from cluster.errors import InvalidRequest, NotFound, SpecError
from cluster.spec.frozen import Frozen
from cluster.spec.lines import Document
from cluster.spec.load import parse_document, spec_error
from cluster.spec.messages import problem_of
from cluster.spec.references import Problem
from cluster.spec.values import FrozenMapping, Listed, Name, Named

_PREFIX = "cuvee"
_SECRET_BYTES = 32
_SALT_BYTES = 16
_NOT_SHOWN = ("salt", "hash")  # somebody may have put the secret there


class LimitsEntry(Frozen):
    """How much a key may ask for."""

    max_concurrent: int | None = Field(
        default=None, ge=1, description="generations at one time, at least 1"
    )
    cost_per_minute: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="a number above 0"
    )
    weight: float = Field(
        default=1.0, gt=0, allow_inf_nan=False, description="a number above 0, against other keys"
    )

    def to_limits(self) -> KeyLimits:
        """As the router knows them."""
        return KeyLimits(self.max_concurrent, self.cost_per_minute, self.weight)


class KeyEntry(Frozen):
    """One key."""

    salt: str = Field(description="what `cuvee keys new` has written")
    hash: str = Field(description="what `cuvee keys new` has written")
    scopes: Listed[Literal["generate", "admin", "metrics"]] = Field(
        min_length=1, description="a list of some of generate, admin, metrics"
    )
    created: AwareDatetime = Field(description="a time with its zone: 2026-01-31T12:00:00Z")
    expires: AwareDatetime | None = Field(
        default=None, description="a time with its zone: 2026-01-31T12:00:00Z, or nothing"
    )
    limits: LimitsEntry = Field(
        default=LimitsEntry(), description="a mapping such as {max_concurrent: 4}"
    )
    note: str = Field(default="", description="text")

    @property
    def scope_set(self) -> frozenset[Scope]:
        """What it is good for."""
        return frozenset(map(Scope, self.scopes))


class KeyFile(Frozen):
    """All keys by their public ids."""

    version: int = Field(ge=1, le=1, description="1, the only version this Cuvée reads")
    keys: Named[KeyEntry] = Field(description="keys by id, or {}")


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key as it is made: its text is known only now."""

    text: str
    entry: KeyEntry


def hash_of(salt: str, secret: str) -> str:
    """The hash that stands in the file, in hexadecimal digits.

    One round of a fast hash is enough: the secret is 256 random bits, so nobody can try them all,
    and a slow hash would only slow the router down. The salt makes equal secrets look different.
    """
    return hashlib.sha256(f"{salt}:{secret}".encode(errors="replace")).hexdigest()


def bearer_key(given: Sequence[str | bytes]) -> str:
    """The key that a call's `authorization` values show; empty unless it is one `Bearer KEY`."""
    scheme, _, key = str(given[0]).partition(" ") if len(given) == 1 else ("", "", "")
    return key.strip() if scheme.lower() == "bearer" else ""


def split_key(text: str) -> tuple[str, str]:
    """The public id and the secret of a key's text; both empty where it is no key's."""
    prefix, _, rest = text.partition("_")
    key_id, _, secret = rest.partition("_")
    return (key_id, secret) if prefix == _PREFIX and secret else ("", "")


def new_key(
    key_id: str,
    scopes: tuple[str, ...],
    limits: LimitsEntry,
    *,
    lifetime: timedelta | None = None,
    note: str = "",
) -> NewKey:
    """A key with a fresh secret."""
    secret, salt = secrets.token_urlsafe(_SECRET_BYTES), secrets.token_hex(_SALT_BYTES)
    now = datetime.now(UTC).replace(microsecond=0)
    entry = KeyEntry.model_validate(
        {
            "salt": salt,
            "hash": hash_of(salt, secret),
            "scopes": scopes,
            "created": now,
            "expires": None if lifetime is None else now + lifetime,
            "limits": limits,
            "note": note,
        }
    )
    return NewKey(f"{_PREFIX}_{key_id}_{secret}", entry)


def read_keys(path: str | Path) -> FrozenMapping[str, KeyEntry]:
    """All keys of a file; raises SpecError for one that is wrong, or that others may write."""
    try:
        with open(path, encoding="utf-8") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            text = file.read()
    except FileNotFoundError:
        raise SpecError("KEYS_NOT_FOUND", f"{path}: there is no such key file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError("KEYS_UNREADABLE", f"{path}: cannot be read as text: {error}") from None
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise SpecError(
            "KEYS_WRITABLE_BY_OTHERS",
            f"{path}: has mode {mode:04o}, so others may add keys; expected one that its owner "
            f"alone may write: chmod 600 {path}",
        )
    return FrozenMapping(_parsed(text, str(path)).keys)


def add_key(path: str | Path, key_id: str, entry: KeyEntry) -> None:
    """Write one more key; raises InvalidRequest for an id that is taken or no name."""
    try:
        TypeAdapter(Name).validate_python(key_id)
    except ValidationError as error:
        message = f"got {key_id!r}; {error.errors()[0]['msg']}"
        raise InvalidRequest("INVALID_NAME", message, field="name") from None
    with _locked(path):
        keys = dict(read_keys(path)) if Path(path).exists() else {}
        if key_id in keys:
            raise InvalidRequest(
                "KEY_EXISTS",
                f"got {key_id!r}, which {path} has already; expected another name, or revoke that "
                "key first",
                field="name",
            )
        _write({**keys, key_id: entry}, path)


def remove_key(path: str | Path, key_id: str) -> None:
    """Write the file without that key; raises NotFound where there is none."""
    with _locked(path):
        keys = dict(read_keys(path))
        if keys.pop(key_id, None) is None:
            known = ", ".join(keys) or "none"
            raise NotFound("UNKNOWN_KEY", f"{path} has no key {key_id!r}; it has: {known}")
        _write(keys, path)


def _parsed(text: str, name: str) -> KeyFile:
    document = parse_document(text, name)
    problems = list(zip(document.problem_lines, document.problems, strict=True))
    try:
        keys = KeyFile.model_validate(document.data)
    except ValidationError as error:
        found = [_problem(e, document) for e in error.errors()]
        problems += [(document.line(problem.location), problem) for problem in found]
    if problems:
        raise spec_error(problems, name, with_lines=True)
    return keys


def _problem(error: ErrorDetails, document: Document) -> Problem:
    if not error["loc"]:
        return Problem((), "expected a mapping of version and keys")
    problem = problem_of(error, KeyFile, document)
    if problem.location[-1] in _NOT_SHOWN:
        return Problem(problem.location, "expected what `cuvee keys new` has written")
    return problem


@contextmanager
def _locked(path: str | Path) -> Iterator[None]:
    """One writer at a time: of two new keys none is lost."""
    try:
        folder = os.open(Path(path).absolute().parent, os.O_RDONLY)
    except OSError as error:
        raise SpecError("KEYS_UNREADABLE", f"{path}: {error.strerror}") from None
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _write(keys: dict[Name, KeyEntry], path: str | Path) -> None:
    """Whole or not at all, and for the owner's eyes."""
    content = {
        "version": 1,
        "keys": {
            key_id: {**entry.model_dump(exclude_defaults=True), "scopes": list(entry.scopes)}
            for key_id, entry in keys.items()
        },
    }
    text = yaml.safe_dump(content, sort_keys=False)
    try:
        descriptor, temporary = tempfile.mkstemp(dir=Path(path).absolute().parent, prefix=".keys-")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:  # of mode 0600
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise SpecError("KEYS_UNWRITABLE", f"{path}: {error.strerror}") from None
