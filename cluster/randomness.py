"""Counter-based randomness: one uniform per (seed, purpose, position), and nothing else.

Who speaks at a position and which token is taken depend on no state, so a retry repeats itself, a
schedule is known ahead, and the number of replicas changes nothing. The hash is SplitMix64's
finalizer (Steele, Lea, Flood 2014) applied once per key word.
"""

from __future__ import annotations

from enum import IntEnum

_MASK = 0xFFFFFFFFFFFFFFFF
_GOLDEN = 0x9E3779B97F4A7C15


class Purpose(IntEnum):
    """What a uniform decides. Numbers are part of the reproducibility contract: never reuse one."""

    TOKEN = 1  # which token is taken
    SPEAKER = 2  # which member speaks
    RETAKE = 3  # which token is taken after another member's token was dropped at a span border


def _mix(word: int) -> int:
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _MASK
    return word ^ (word >> 31)


def uniform(seed: int, purpose: Purpose, position: int) -> float:
    """A number in the open interval (0, 1), fixed by its three arguments (seed taken mod 2**64)."""
    word = _mix((seed + _GOLDEN) & _MASK)
    word = _mix((word + purpose * _GOLDEN) & _MASK)
    word = _mix((word + (position + 1) * _GOLDEN) & _MASK)
    return ((word >> 12) + 0.5) * 2.0**-52
