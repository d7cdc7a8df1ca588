"""Laws over bytes against sums over all token sequences, written out."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest

from cluster.text.bytewise import END, NUM_SYMBOLS, ByteVocabulary, ByteWalk
from tests.text.byte_law import Law, byte_law, followed
from tests.text.text_samples import HARD
from tests.text.tokenizer_factory import MAKES, make, make_canonical

LETTERS = [b"a", b"b", b"\xc3", b"\xa9"]
TOKENS = [  # id 0 is a control token; 5 and 6 spell the same; the last two end a turn
    b"",
    *LETTERS,
    *[b"ab", b"ab", b"aba", b"ba", b"bab", b"abab", "é".encode(), "éa".encode(), b"a\xc3", b"bb"],
    b"",
    b"<e>",
]
END_IDS = (15, 16)


@cache
def random_law(ids: tuple[int, ...]) -> np.ndarray:
    """Log-probabilities that depend on all tokens before."""
    logits = np.random.default_rng([7, *ids]).normal(size=len(TOKENS)) * 2
    return np.asarray(logits - np.log(np.exp(logits).sum()))


def no_canonical(text: str) -> list[int]:
    raise AssertionError("no split was lost")


def canonical(text: str) -> list[int]:
    """The longest token first."""
    ids, left = [], text.encode()
    while left:
        fitting = [i for i, data in enumerate(TOKENS[:15]) if data and left.startswith(data)]
        best = max(fitting, key=lambda i: len(TOKENS[i]))
        ids.append(best)
        left = left[len(TOKENS[best]) :]
    return ids


def fresh(min_share: float = 0.0) -> ByteWalk:
    encode = canonical if min_share else no_canonical
    return ByteWalk(ByteVocabulary(TOKENS, END_IDS), encode, min_share)


@pytest.mark.parametrize("length", range(5))
def test_the_next_byte_has_the_law_of_all_token_sequences(length: int) -> None:
    num_checked = 0
    for letters in itertools.product(LETTERS, repeat=length):
        text = b"".join(letters)
        wanted = byte_law(TOKENS, END_IDS, random_law, text)
        found = np.exp(followed(fresh(), text, random_law).logprobs)
        np.testing.assert_allclose(found, wanted, atol=1e-9)
        num_checked += 1
    assert num_checked == len(LETTERS) ** length


def test_bytes_one_by_one_are_the_same_as_all_at_once_and_ask_nothing_twice() -> None:
    text = b"abab\xc3\xa9ab"
    asked: list[tuple[int, ...]] = []

    def law(ids: tuple[int, ...]) -> np.ndarray:
        asked.append(ids)
        return random_law(ids)

    slow = fresh()
    for length in range(len(text) + 1):
        found = followed(slow, text[:length], law)
        again = followed(slow, text[:length], law)
        np.testing.assert_array_equal(found.logprobs, again.logprobs)
    assert len(asked) == len(set(asked))
    np.testing.assert_array_equal(found.logprobs, followed(fresh(), text, random_law).logprobs)
    assert found.dropped == 0


def test_a_long_text_does_not_underflow() -> None:
    found = followed(fresh(0.01), b"ab\xc3\xa9" * 60, random_law)
    assert np.exp(found.logprobs).sum() == pytest.approx(1)
    assert found.logprobs.max() > np.log(1 / NUM_SYMBOLS)


def test_less_is_asked_and_more_dropped_the_higher_the_least_share() -> None:
    text, num_asked, dropped = b"ababbab" * 3, [], []
    for min_share in (1e-4, 1e-2, 0.2, 0.9):
        asked = []

        def law(ids: tuple[int, ...], asked: list[tuple[int, ...]] = asked) -> np.ndarray:
            asked.append(ids)
            return random_law(ids)

        dropped.append(followed(fresh(min_share), text, law).dropped)
        num_asked.append(len(asked))
    assert num_asked == sorted(num_asked, reverse=True)
    assert num_asked[-1] < num_asked[0] / 10
    assert 0 < dropped[0] < dropped[1] < dropped[2]


def test_the_share_dropped_is_the_error_to_be_expected_of_a_members_own_text() -> None:
    """Its mean over the member's own texts bounds that of the total variation at the next byte."""
    rng = np.random.default_rng(0)
    errors, dropped = [], []
    for _ in range(150):
        exact, text = fresh(), b""
        while len(text) < 6:
            law = np.exp(followed(exact, text, random_law).logprobs)
            symbol = int(rng.choice(NUM_SYMBOLS, p=law / law.sum()))
            if symbol == END:
                break
            text += bytes([symbol])
        law = np.exp(followed(exact, text, random_law).logprobs)
        found = followed(fresh(0.05), text, random_law)
        errors.append(np.abs(np.exp(found.logprobs) - law).sum() / 2)
        dropped.append(found.dropped)
    assert 0 < np.mean(errors) < np.mean(dropped)


def certain_of(*tokens: int) -> Law:
    """A law that says these tokens, one after another, and hardly anything else."""

    def law(ids: tuple[int, ...]) -> np.ndarray:
        logprobs = np.full(len(TOKENS), -40.0)
        logprobs[tokens[min(len(ids), len(tokens) - 1)]] = 0.0
        return logprobs

    return law


def test_what_no_split_left_can_spell_is_read_anew_in_canonical_tokens() -> None:
    asked: list[tuple[int, ...]] = []
    law = certain_of(10, 1)  # abab, then a for ever; that is why "aba" has one split only

    def noting(ids: tuple[int, ...]) -> np.ndarray:
        asked.append(ids)
        return law(ids)

    walk = fresh(1e-3)
    assert followed(walk, b"aba", noting).dropped < 1e-9  # in the middle of abab
    found = followed(walk, b"aba\xa9", noting)
    assert asked == [(), (7,), (7, 4)]
    assert found.dropped == pytest.approx(1)
    assert np.exp(found.logprobs[ord("a")]) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("name", sorted(MAKES))
def test_any_bytes_at_all_can_be_said_to_any_tokenizer(name: str) -> None:
    """Of a model that always expects something else; what it cannot spell passes it by."""
    _, vocabulary = make(name)
    size = vocabulary.size
    words = ByteVocabulary(vocabulary.token_bytes, vocabulary.end_ids())

    def stubborn(ids: tuple[int, ...]) -> np.ndarray:
        logprobs = np.full(size, -60.0)
        logprobs[words.ids[len(ids) % len(words.ids)]] = 0.0
        return logprobs

    for text in ("".join(HARD).encode(), bytes(range(256)), b"\xf0\x9f\x91a\xe4\xbd"):
        walk = ByteWalk(words, make_canonical(name).encode, 1e-3)
        found = followed(walk, text, stubborn)
        assert walk.num_bytes == len(text)
        assert np.isfinite(found.logprobs).all()
        assert np.exp(found.logprobs).sum() == pytest.approx(1)


def test_a_range_of_tokens_is_those_that_begin_with_the_bytes() -> None:
    _, vocabulary = make("gpt2")
    words = ByteVocabulary(vocabulary.token_bytes, vocabulary.end_ids())
    spelled: Sequence[bytes] = [vocabulary.token_bytes[i] for i in words.ids]
    assert spelled == sorted(spelled)
    assert len(spelled) == len(vocabulary.token_bytes) - len(vocabulary.special)
    firsts = words.bytes_at(0, len(spelled), 0).tolist()
    assert firsts == [data[0] for data in spelled]
