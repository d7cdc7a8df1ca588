"""Tokens as people can read them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cuvee.v1 import generation_pb2 as pb


def spelled(data: bytes) -> str:
    r"""A token's bytes, quoted, so that spaces show; what is no whole character as '\xc3'."""
    try:
        return repr(data.decode())
    except UnicodeDecodeError:
        return repr(data.decode(errors="backslashreplace")).replace(r"\\x", r"\x")


def chance(logprob: float) -> str:
    """A log-probability in percent."""
    return f"{math.exp(logprob):.1%}"


def shares_of(token: pb.Token) -> list[tuple[str, float]]:
    """Who drew it: one member, or several with their shares."""
    return [(s.member, s.share) for s in token.shares] or [(token.member, 1.0)]


def weights_of(token: pb.Token) -> list[tuple[str, float]]:
    """By what weights its speaker was drawn, where these change from token to token."""
    return [(s.member, s.share) for s in token.weights]
