"""How good a reward model is at pairs of replies, and how steady when its inputs are noised.

As in WARM (2401.12187): a reward that holds on to what is spurious changes its mind when the words
are disturbed, and an average of several has less of that.
"""

from __future__ import annotations

import json
import random
import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.errors import InvalidRequest
from cluster.members.base import Prompt
from cluster.rankers.base import RankRequest
from cluster.rankers.model import RankerModel
from cluster.spec import RankerSpec

_KEYS = {"prompt", "chosen", "rejected"}


@dataclass(frozen=True, slots=True)
class Pair:
    """Two replies to a prompt, of which one is better."""

    prompt: str
    chosen: str
    rejected: str


@dataclass(frozen=True, slots=True)
class Judged:
    """Shares of pairs, between 0 and 1."""

    accuracy: float  # the better reply has the higher reward
    noised_accuracy: float  # the same where letters of both are disturbed
    agreement: float  # the order is the same with and without that


def read_pairs(file: Path) -> list[Pair]:
    """Lines of JSON with prompt, chosen and rejected; raises InvalidRequest with the line."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest("PAIRS_UNREADABLE", f"{file}: {error}", field="pairs") from None
    found = [_pair(line, f"{file}:{at}") for at, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise InvalidRequest("PAIRS_UNREADABLE", f"{file}: is empty; expected pairs", field="pairs")
    return found


def judge(folder: Path, pairs: Sequence[Pair], *, noise: float, seed: int) -> Judged:
    """Ask the model for all pairs, as they are and with `noise` of their letters replaced."""
    ranker = RankerModel(
        RankerSpec.model_validate({"model": str(folder), "kind": "reward", "dtype": "float32"})
    )
    chance = random.Random(seed)
    noised = [
        Pair(
            pair.prompt, _noised(pair.chosen, noise, chance), _noised(pair.rejected, noise, chance)
        )
        for pair in pairs
    ]
    plain, disturbed = (_is_chosen_first(ranker, given) for given in (pairs, noised))
    num_same = sum(one == other for one, other in zip(plain, disturbed, strict=True))
    num = len(pairs)
    return Judged(sum(plain) / num, sum(disturbed) / num, num_same / num)


def _is_chosen_first(ranker: RankerModel, pairs: Sequence[Pair]) -> list[bool]:
    requests = [RankRequest(Prompt(text=p.prompt), (p.chosen, p.rejected)) for p in pairs]
    return [bool(rewards[0] > rewards[1]) for rewards in ranker.measure(requests)]


def _noised(text: str, noise: float, chance: random.Random) -> str:
    """Each letter becomes another one with that probability."""
    letters = string.ascii_lowercase
    return "".join(
        chance.choice(letters) if char.isalpha() and chance.random() < noise else char
        for char in text
    )


def _pair(line: str, place: str) -> Pair:
    try:
        given = json.loads(line)
    except ValueError as error:
        raise InvalidRequest("PAIR_INVALID", f"{place}: no JSON: {error}", field="pairs") from None
    is_pair = isinstance(given, dict) and given.keys() == _KEYS
    if not is_pair or not all(isinstance(value, str) for value in given.values()):
        message = f"{place}: expected an object of prompt, chosen and rejected, each a text"
        raise InvalidRequest("PAIR_INVALID", message, field="pairs")
    return Pair(**given)
