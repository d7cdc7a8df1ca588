"""A member's law over tokens as a law over bytes: its marginal, whatever the tokenizer.

The bytes so far may have been cut into tokens in many ways. A `ByteWalk` follows those that are
likely enough: each such *split* has token ids and, as masses, the probabilities of the next tokens
that begin with the bytes it leaves over. The next byte's probability is the sum over splits and
tokens. Where a token is all said, a new split begins; a split that no token fits dies. Control
tokens spell nothing and are left out, and the rest is conditional on that.

With `min_share` 0 every split is followed: exact, at a cost that grows exponentially. Otherwise a
new split with a smaller share of all is dropped, and one with its last tokens in common with a
likelier one is merged into it. On text that the member itself writes, what is dropped is on average
as likely later as it was then. Others may write what no split left can spell: the member then
begins anew from its canonical tokens of the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Generator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cluster.distribution import Distribution, Ids, Logprobs

END = 256  # the symbol after all bytes: the turn ends
NUM_SYMBOLS = END + 1
_SYMBOLS = np.arange(NUM_SYMBOLS)
_LEAST = 1e-12  # each symbol's: members that exclude all of each other's could not go on
_NUM_COMMON = 4  # splits that agree in so many last tokens are merged
_ODD_BYTE = re.compile("([\udc80-\udcff])")  # as `surrogateescape` shows what is no text

Asks = Generator[tuple[int, ...], Logprobs, Distribution]  # the law after these ids, in turn


class ByteVocabulary:
    """A vocabulary in the order of its tokens' bytes."""

    def __init__(self, token_bytes: Sequence[bytes], end_ids: Collection[int]) -> None:
        spelled = [i for i, data in enumerate(token_bytes) if data and i not in end_ids]
        spelled.sort(key=lambda i: token_bytes[i])
        self.token_bytes = token_bytes
        self.ids: Ids = np.array(spelled, dtype=np.int64)
        self.end_ids: Ids = np.array(sorted(end_ids), dtype=np.int64)
        self.lengths = np.array([len(token_bytes[i]) for i in spelled], dtype=np.int64)
        self.single = {token_bytes[i]: i for i in spelled if len(token_bytes[i]) == 1}
        self._begins = np.cumsum(self.lengths) - self.lengths
        self._data = np.frombuffer(b"".join(token_bytes[i] for i in spelled), dtype=np.uint8)

    def bytes_at(self, low: int, num: int, depth: int) -> NDArray[np.uint8]:
        """The byte at a depth of `num` tokens that are longer, from the `low`-th on."""
        found: NDArray[np.uint8] = self._data[self._begins[low : low + num] + depth]
        return found


@dataclass(slots=True)
class _Split:
    """One way to cut the bytes so far into tokens and the beginning of one more."""

    ids: tuple[int, ...]
    weight: float  # its share of all, until its masses are known
    masses: Logprobs | None = None  # of tokens that may be next, in the vocabulary's order ...
    low: int = 0  # ... from this one on; all begin with the bytes left over, and are longer
    num_left_over: int = 0
    end: float = 0.0  # the mass of the end of the turn

    @property
    def mass(self) -> float:
        """Its share of all."""
        return self.weight if self.masses is None else float(self.masses.sum()) + self.end


class ByteWalk:
    """One member's splits of one reply; a function of the text and of `min_share` alone."""

    def __init__(
        self, vocabulary: ByteVocabulary, encode: Callable[[str], list[int]], min_share: float
    ) -> None:
        """`encode` gives the canonical tokens of a text."""
        self.num_bytes = 0  # of the text walked
        self.dropped = 0.0  # the shares of splits that were not followed, summed
        self._vocabulary = vocabulary
        self._encode = encode
        self._min_share = min_share
        self._splits = [_Split((), 1.0)]

    def follow(self, text: bytes) -> Asks:
        """Go on to the text's end; the law of the symbol after it."""
        while self.num_bytes < len(text):
            yield from self._look()
            byte, self.num_bytes = text[self.num_bytes], self.num_bytes + 1
            if not self._advance(byte):
                self.dropped += 1.0
                yield from self._begin_anew(text[: self.num_bytes])
        yield from self._look()
        return self._distribution()

    def _look(self) -> Generator[tuple[int, ...], Logprobs, None]:
        """Ask for what follows new splits; the likeliest last: the next text mostly follows it."""
        vocabulary = self._vocabulary
        for split in sorted(self._splits, key=lambda split: (split.weight, split.ids)):
            if split.masses is None:
                logprobs = yield split.ids
                probs = np.exp(logprobs[vocabulary.ids])
                end = float(np.exp(logprobs[vocabulary.end_ids]).sum())
                scale = split.weight / (float(probs.sum()) + end)
                split.masses, split.end = scale * probs, scale * end

    def _advance(self, byte: int) -> bool:
        """Take one more byte; False if no split can."""
        vocabulary = self._vocabulary
        going_on: list[_Split] = []
        new: list[_Split] = []
        for split in self._splits:
            assert split.masses is not None
            at = vocabulary.bytes_at(split.low, len(split.masses), split.num_left_over)
            begin = int(np.searchsorted(at, np.uint8(byte), "left"))
            end = int(np.searchsorted(at, np.uint8(byte), "right"))
            low, length = split.low + begin, split.num_left_over + 1
            num_said = int((vocabulary.lengths[low : split.low + end] == length).sum())
            masses = split.masses[begin:end]  # sorted by bytes, so those all said come first
            for id, mass in zip(vocabulary.ids[low : low + num_said], masses, strict=False):
                new.append(_Split((*split.ids, int(id)), float(mass)))
            if masses[num_said:].any():
                low += num_said
                going_on.append(_Split(split.ids, 0.0, masses[num_said:], low, length))
        total = sum(split.mass for split in going_on) + sum(split.weight for split in new)
        if total > 0:
            self._keep(going_on, [split for split in new if split.weight > 0], total)
        return total > 0

    def _keep(self, going_on: list[_Split], new: list[_Split], total: float) -> None:
        """The splits from now on, with what they have of the total as their share."""
        for split in going_on:
            assert split.masses is not None
            split.masses = split.masses / total
        for split in new:
            split.weight /= total
        if self._min_share > 0:
            new = self._merged(new)
            most = max(split.mass for split in (*going_on, *new))
            least = min(self._min_share, most)
            self.dropped += sum(split.weight for split in new if split.weight < least)
            new = [split for split in new if split.weight >= least]
        self._splits = going_on + new

    def _merged(self, new: list[_Split]) -> list[_Split]:
        """One split for all that agree in their last tokens; they end at one place."""
        found: dict[tuple[int, ...], _Split] = {}
        for split in sorted(new, key=lambda split: (-split.weight, split.ids)):
            best = found.setdefault(split.ids[-_NUM_COMMON:], split)
            if best is not split:
                best.weight += split.weight
                self.dropped += split.weight
        return list(found.values())

    def _begin_anew(self, text: bytes) -> Generator[tuple[int, ...], Logprobs, None]:
        """From the text's canonical tokens but the last, or else from all of them."""
        ids = self._canonical(text)
        spelled = [self._vocabulary.token_bytes[i] for i in ids]
        if b"".join(spelled) == text:
            self._splits = [_Split(tuple(ids[:-1]), 1.0)]
            is_alive = True
            for byte in spelled[-1]:
                yield from self._look()
                is_alive = is_alive and self._advance(byte)
            if is_alive:
                return
        self._splits = [_Split(tuple(ids), 1.0)]

    def _canonical(self, text: bytes) -> list[int]:
        ids: list[int] = []
        for piece in _ODD_BYTE.split(text.decode("utf-8", "surrogateescape")):
            if _ODD_BYTE.match(piece):
                single = self._vocabulary.single.get(piece.encode("utf-8", "surrogateescape"))
                ids += [] if single is None else [single]
            else:
                ids += self._encode(piece)
        return ids

    def _distribution(self) -> Distribution:
        masses = np.zeros(NUM_SYMBOLS)
        for split in self._splits:
            assert split.masses is not None
            at = self._vocabulary.bytes_at(split.low, len(split.masses), split.num_left_over)
            masses[:END] += np.bincount(at, weights=split.masses, minlength=END)
            masses[END] += split.end
        masses = masses / masses.sum() + _LEAST
        return Distribution(_SYMBOLS, np.log(masses / masses.sum()), dropped=self.dropped)
