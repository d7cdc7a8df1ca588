"""What may happen to a reply on its way, and its caller is told."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class NoticeKind(Enum):
    """What may happen to a reply on its way that its caller should know."""

    MEMBER_GONE = "member_gone"  # it goes on without the member, by the others' weights


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that happened to a reply on its way."""

    kind: NoticeKind
    member: str
    position: int  # the number of the first token that it concerns
    message: str
