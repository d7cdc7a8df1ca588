"""What an attacker would send: bytes, messages and files that are nearly right, by seed."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

_TEXTS = ("", "a", "tokens", "mixed", "austen", "é", "\x00", "漢" * 50, "a" * 3000, "{", "(" * 40)
_WHOLE = (0, 1, 2, 7, 77, 2**31 - 1)
_REALS = (0.0, 1.0, -1.0, 0.5, 1e308, 5e-324, math.inf, -math.inf, math.nan)


def mutated(data: bytes, rng: random.Random) -> bytes:
    """The same bytes with a few of them changed, cut out, doubled or put in."""
    given = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(given) + 1)
        kind = rng.randrange(4)
        if kind == 0 and at < len(given):
            given[at] = rng.randrange(256)
        elif kind == 1:
            del given[at : at + rng.randint(1, 8)]
        elif kind == 2:
            given[at:at] = rng.randbytes(rng.randint(1, 8))
        else:
            given[at:at] = given[at : at + rng.randint(1, 40)]
    return bytes(given)


def fill(message: Message, rng: random.Random, depth: int = 0) -> None:
    """Set about half of a message's fields to edge cases; unknown enum numbers among them."""
    for field in message.DESCRIPTOR.fields:
        if rng.random() < 0.5 or depth > 4:
            continue
        if field.message_type and field.message_type.GetOptions().map_entry:
            _fill_map(getattr(message, field.name), field, rng)
        elif field.is_repeated:
            for _ in range(rng.randint(0, 3)):
                if field.message_type:
                    fill(getattr(message, field.name).add(), rng, depth + 1)
                else:
                    getattr(message, field.name).append(_value(field, rng))
        elif field.message_type:
            inner = getattr(message, field.name)
            inner.SetInParent()
            fill(inner, rng, depth + 1)
        else:
            setattr(message, field.name, _value(field, rng))


def _fill_map(target: Any, field: FieldDescriptor, rng: random.Random) -> None:
    key, value = (field.message_type.fields_by_name[name] for name in ("key", "value"))
    for _ in range(rng.randint(0, 3)):
        if not value.message_type:
            target[_value(key, rng)] = _value(value, rng)


def _value(field: FieldDescriptor, rng: random.Random) -> Any:
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_STRING:
        text = rng.choice(_TEXTS)
        return text.encode() if field.type == FieldDescriptor.TYPE_BYTES else text
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return rng.random() < 0.5
    if kind in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        return rng.choice(_REALS)
    return rng.choice(_WHOLE)


def resident_bytes() -> int:
    """What this process has in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096
