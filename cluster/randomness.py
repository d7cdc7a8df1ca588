"""Counter-based randomness: everything is fixed by (seed, purpose, position), and nothing else.

Who speaks at a position and which token is taken depend on no state, so a retry repeats itself, a
schedule is known ahead, and the number of replicas changes nothing. The hash is SplitMix64's
finalizer (Steele, Lea, Flood 2014), applied once per value that is hashed.
"""

from __future__ import annotations

from enum import IntEnum
from functools import lru_cache

GOLDEN = 0x9E3779B97F4A7C15
MIX_1 = 0xBF58476D1CE4E5B9
MIX_2 = 0x94D049BB133111EB
_MASK = 0xFFFFFFFFFFFFFFFF


class Purpose(IntEnum):
    """What is decided. Numbers are part of the reproducibility contract: never reuse one."""

    TOKEN = 1  # which token is taken
    SPEAKER = 2  # which member speaks
    RETAKE = 3  # which token is taken after another member's token was dropped at a span border
    PROPOSAL = 4  # the seed of one of several replies to the same prompt


def key(seed: int, purpose: Purpose, position: int) -> int:
    """64 random bits, fixed by the three arguments (seed taken mod 2**64)."""
    return mix((_origin(seed, purpose) + (position + 1) * GOLDEN) & _MASK)


def uniform(seed: int, purpose: Purpose, position: int) -> float:
    """A number in the open interval (0, 1), fixed by the three arguments."""
    return to_uniform(key(seed, purpose, position))


@lru_cache(maxsize=1024)  # of the replies under way: two of three mixes of every draw
def _origin(seed: int, purpose: Purpose) -> int:
    return mix((mix((seed + GOLDEN) & _MASK) + purpose * GOLDEN) & _MASK)


def mix(bits: int) -> int:
    """SplitMix64's finalizer, on 64 bits."""
    bits = ((bits ^ (bits >> 30)) * MIX_1) & _MASK
    bits = ((bits ^ (bits >> 27)) * MIX_2) & _MASK
    return bits ^ (bits >> 31)


def to_uniform(bits: int) -> float:
    """The number in (0, 1) that 64 bits stand for."""
    return ((bits >> 12) + 0.5) * 2.0**-52
