"""What a caller has of a reply that broke off."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cluster.errors import InvalidRequest
from cluster.members.base import StepToken
from cluster.router.notices import Notice


@dataclass(frozen=True, slots=True)
class ReceivedToken:
    """One token as the caller got it."""

    member: str
    id: int
    bytes: bytes
    weights: tuple[tuple[str, float], ...] = ()  # as the token told them


@dataclass(frozen=True, slots=True)
class Resumption:
    """All tokens of the reply so far, from position 0, and the blend's revision then."""

    tokens: tuple[ReceivedToken, ...] = ()
    revision: str = ""  # empty: whatever it is now
    notices: tuple[Notice, ...] = ()  # what had happened to it


@dataclass(frozen=True, slots=True)
class Recalled:
    """A received token as the router keeps it; its log-probability was told once and is gone."""

    member: int  # index into the blend's members
    token: StepToken
    weights: tuple[float, ...] = ()  # by member, where the token told them


def recalled(resumption: Resumption | None, members: Sequence[str]) -> tuple[Recalled, ...]:
    """The received tokens; raises InvalidRequest for one by nobody of the blend."""
    places = {name: index for index, name in enumerate(members)}
    tokens = () if resumption is None else resumption.tokens
    for position, token in enumerate(tokens):
        given = [("member", token.member), *(("weights", name) for name, _ in token.weights)]
        for field, name in given:
            if name not in places:
                raise InvalidRequest(
                    "UNKNOWN_MEMBER",
                    f"got {name!r}; expected a member of the blend: {', '.join(members)}",
                    field=f"resumption.tokens[{position}].{field}",
                )
    return tuple(
        Recalled(
            places[token.member],
            StepToken(token.id, token.bytes, math.nan),
            tuple(dict(token.weights).get(name, 0.0) for name in members if token.weights),
        )
        for token in tokens
    )


def losses_of(resumption: Resumption | None, members: Sequence[str]) -> tuple[Notice, ...]:
    """Who was gone from where on; raises InvalidRequest where nobody can have been."""
    notices = () if resumption is None else resumption.notices
    least = 0
    for number, notice in enumerate(notices):
        most = len(resumption.tokens) if resumption else 0
        if notice.member not in members or not least <= notice.position <= most:
            raise InvalidRequest(
                "NOT_THIS_REPLY",
                f"got member {notice.member!r} from position {notice.position} on; expected one of "
                f"{', '.join(members)}, from {least} to {most}",
                field=f"resumption.notices[{number}]",
            )
        least = notice.position
    return notices


def not_of_this_reply(position: int, given: str, expected: str, name: str) -> InvalidRequest:
    """A received token that the request cannot have given at its position."""
    return InvalidRequest(
        "NOT_THIS_REPLY",
        f"got {given}; expected {expected}, by this request and its seed",
        field=f"resumption.tokens[{position}].{name}",
    )
