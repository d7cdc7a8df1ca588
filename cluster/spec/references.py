"""Names that one part of a blend file uses and another part must define."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Location = tuple[str | int, ...]

LIKELIHOOD = "likelihood"
VOTE = "vote"
OWN_RANKS = (LIKELIHOOD, VOTE)  # what needs no ranker; no ranker may have such a name

_MAX_GIVEN_LENGTH = 80
_MAX_KNOWN = 200
_MAX_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a blend file: where, and in words."""

    location: Location
    message: str

    @property
    def field(self) -> str:
        return ".".join(str(part) for part in self.location)


def did_you_mean(given: str, known: Sequence[str]) -> str:
    """`; did you mean …?` when something known looks like it, else nothing."""
    if len(given) > _MAX_GIVEN_LENGTH or len(known) > _MAX_KNOWN:  # comparing costs their product
        return ""
    close = difflib.get_close_matches(given, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def rankers_of(blend: Mapping[str, Any]) -> dict[Location, str]:
    """The rankers that a blend, as plain data, names, and where."""
    gate = blend.get("gate")
    found = {
        ("rank",): blend.get("rank"),
        ("gate", "ranker"): gate.get("ranker") if isinstance(gate, Mapping) else None,
    }
    return {
        location: name
        for location, name in found.items()
        if isinstance(name, str) and name not in OWN_RANKS
    }


def dangling(
    members: Sequence[str],
    blends: Mapping[str, Sequence[str]],
    default_blend: str | None,
    rankers: Sequence[str],
    ranked: Mapping[str, Mapping[Location, str]],
) -> list[Problem]:
    """Members and rankers that blends use but nobody defines, and a default blend that is none."""
    found = [
        Problem(
            ("blends", blend, "members", name),
            f"there is no member {name!r}; expected {_one_of(members)}"
            + did_you_mean(name, members),
        )
        for blend, names in blends.items()
        for name in names
        if name not in members
    ]
    found += [
        Problem(
            ("blends", blend, *location),
            f"there is no ranker {name!r}; expected {_one_of((*OWN_RANKS, *rankers))}"
            + did_you_mean(name, (*OWN_RANKS, *rankers)),
        )
        for blend, names in ranked.items()
        for location, name in names.items()
        if name not in rankers
    ]
    if default_blend is not None and default_blend not in blends:
        names = tuple(blends)
        found.append(
            Problem(
                ("serving", "default_blend"),
                f"there is no blend {default_blend!r}; expected {_one_of(names)}"
                + did_you_mean(default_blend, names),
            )
        )
    return found


def _one_of(names: Sequence[str]) -> str:
    if not names:
        return "one defined in this file"
    more = f" and {len(names) - _MAX_SHOWN} more" if len(names) > _MAX_SHOWN else ""
    return "one of " + ", ".join(names[:_MAX_SHOWN]) + more
