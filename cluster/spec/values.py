"""The small values a blend file is made of: names, sizes, spans, and a mapping that cannot change.

Each check raises `refuse(...)`, whose text is shown as it is after "got …; ".
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    WrapSerializer,
)
from pydantic_core import PydanticCustomError

from cluster.models.reference import ModelKind, ModelReference

REFUSED = "cuvee_refused"  # the type of our own pydantic errors; their message is meant for people

BASE_FOLDER = "base_folder"  # key of the validation context: where relative paths start

MIN_KV_MEMORY_BYTES = 64 * 1024
MAX_NAME_LENGTH = 40

SPAN_WORDS = ("token", "word", "sentence", "response")
_NAME = re.compile(r"[a-z](?:[a-z0-9-]*[a-z0-9])?")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", re.IGNORECASE)
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}

K = TypeVar("K")
V = TypeVar("V")


def refuse(message: str) -> PydanticCustomError:
    """An error that says what would be right; what was given is put before it."""
    return PydanticCustomError(REFUSED, "{message}", {"message": message})


class FrozenMapping(Mapping[K, V], Generic[K, V]):
    """A read-only mapping that keeps its order and can be hashed and pickled.

    `types.MappingProxyType` can do neither of the last two, and specs travel to other processes.
    """

    __slots__ = ("_items",)

    def __init__(self, items: Mapping[K, V]) -> None:
        self._items = dict(items)

    def __getitem__(self, key: K) -> V:
        return self._items[key]

    def __iter__(self) -> Iterator[K]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(frozenset(self._items.items()))

    def __repr__(self) -> str:
        return repr(self._items)


def _check_name(text: str) -> str:
    if len(text) > MAX_NAME_LENGTH or not _NAME.fullmatch(text):
        raise refuse(
            f"expected a name of at most {MAX_NAME_LENGTH} characters: a-z first, then a-z, 0-9 "
            "and hyphens, no hyphen last"
        )
    return text


def _plain(mapping: Any, handler: SerializerFunctionWrapHandler) -> Any:
    return handler(dict(mapping))


def parse_size(text: str) -> int:
    """Bytes of a human size: 256MiB and 256Mi count in 1024s, 256MB and 256M in 1000s."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size")
    number, power, binary = match.groups()
    unit = 1024.0 if binary else 1000.0
    return round(float(number) * unit ** _POWERS[power.upper()])


def _check_size(given: object) -> int:
    expected = "expected a size such as 256MiB or 1.5GiB, at least 64KiB"
    if isinstance(given, str):
        try:
            given = parse_size(given)
        except ValueError:
            raise refuse(expected) from None
    if isinstance(given, int) and not isinstance(given, bool) and given >= MIN_KV_MEMORY_BYTES:
        return given
    raise refuse(expected)


def _check_span(given: Any) -> Any:
    whole = isinstance(given, int) and not isinstance(given, bool)
    if given in SPAN_WORDS if isinstance(given, str) else whole and given >= 1:
        return given
    raise refuse(
        f"expected one of {', '.join(SPAN_WORDS)}, or a whole number of tokens of at least 1"
    )


def _check_weights(weights: Mapping[str, float]) -> Mapping[str, float]:
    if not weights:
        raise refuse("expected at least one member with its weight, such as {austen: 1}")
    total = math.fsum(weights.values())
    if not 0 < total < math.inf:
        raise refuse(f"expected weights with a finite sum above 0; they sum to {total:g}")
    return weights


def _as_tuple(given: Any) -> Any:
    return tuple(given) if isinstance(given, list) else given


def absolute(path: str, info: ValidationInfo) -> str:
    """The path as it is known everywhere: a relative one starts from the file's own folder."""
    given = Path(path).expanduser()
    if given.is_absolute():
        return str(given)
    base = (info.context or {}).get(BASE_FOLDER)
    if base is None:
        raise refuse("expected an absolute path: there is no file to start from here")
    return os.path.normpath(Path(base) / given)  # not resolved: links may be moved, as mounts do


def _known_and_absolute(model: str, info: ValidationInfo) -> str:
    """A model's name of a known kind; a folder as it is known everywhere."""
    try:
        reference = ModelReference.parse(model)
    except ValueError as error:
        raise refuse(str(error)) from None
    if reference.kind is not ModelKind.FOLDER:
        return model
    folder = Path(model).expanduser()
    if not folder.is_absolute():
        base = (info.context or {}).get(BASE_FOLDER)
        if base is None:
            raise refuse("expected an absolute folder: there is no file to start from here")
        folder = Path(base) / folder
    return str(folder.resolve())


Name = Annotated[str, AfterValidator(_check_name)]
ModelName = Annotated[str, AfterValidator(_known_and_absolute)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Amount = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Named = Annotated[Mapping[Name, V], AfterValidator(FrozenMapping), WrapSerializer(_plain)]
Keyed = Annotated[Mapping[str, V], AfterValidator(FrozenMapping), WrapSerializer(_plain)]
Weights = Annotated[Named[Weight], AfterValidator(_check_weights)]
Listed = Annotated[tuple[V, ...], BeforeValidator(_as_tuple)]  # files have lists
Bytes = Annotated[int, BeforeValidator(_check_size)]
FilePath = Annotated[str, AfterValidator(absolute)]
Span = Annotated[
    Literal["token", "word", "sentence", "response"] | int, BeforeValidator(_check_span)
]
