"""Where words and sentences begin: the places where another member may take over.

White space belongs to what it precedes, as in most vocabularies: " word" begins a word, and the
"word" after a " " does not. Chinese characters and kana are words of their own; Hangul, Thai and
all else go by spaces. A sentence ends at a terminator followed by white space (after 。！？ by
anything) or at a newline; abbreviations ("Dr. Who") count as ends, and a decimal point does not.
No dictionary, no language detection: a border costs a draw, and a missed one only delays it.
"""

from __future__ import annotations

import unicodedata
from enum import Enum

_TAIL = 64  # characters of the text before that are looked at
_WIDE_TERMINATORS = "。！？｡．"
_TERMINATORS = ".!?…؟।॥‼⁇⁈⁉" + _WIDE_TERMINATORS
_CLOSERS = "\"'”’»›)]}」』）】〉》〕］｝*_`"
_SMALL_KANA = "ぁぃぅぇぉっゃゅょゎゕゖァィゥェォッャュョヮヵヶｧｨｩｪｫｬｭｮｯ"
_WORD_RANGES = (  # every character is a word
    (0x3005, 0x3007),
    (0x3041, 0x30FF),
    (0x3100, 0x312F),
    (0x31A0, 0x31BF),
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0xFF66, 0xFF9F),
    (0x1B000, 0x1B16F),
    (0x20000, 0x3FFFF),
)
_PUNCTUATION_RANGES = (  # what is written between them
    (0x3001, 0x303F),
    (0xFF01, 0xFF0F),
    (0xFF1A, 0xFF20),
    (0xFF3B, 0xFF40),
    (0xFF5B, 0xFF65),
)


class Border(Enum):
    """What kind of span a token may begin."""

    NONE = "none"
    WORD = "word"
    SENTENCE = "sentence"


def starts_span(border: Border, before: str, token_text: str) -> bool:
    """Whether `token_text` begins a new word or sentence after the complete text `before`.

    False when there is nothing before: the first span needs no border.
    """
    if border is Border.NONE or not before or not token_text:
        return False
    tail = before[-_TAIL:]
    if border is Border.WORD:
        return _starts_word(tail[-1], token_text[0])
    return _starts_sentence(tail, token_text)


def _starts_word(last: str, first: str) -> bool:
    if last.isspace():
        return False  # the white space began the word
    if first.isspace():
        return True
    if not (_is_wide(last) or _is_wide(first)):
        return False
    if unicodedata.category(last) in ("Ps", "Pi"):
        return False  # an opening bracket has begun it
    return not _continues_word(first)


def _continues_word(first: str) -> bool:
    """Marks, lengtheners, small kana, and punctuation that does not open anything."""
    category = unicodedata.category(first)
    if category in ("Ps", "Pi"):
        return False
    return category[0] in "MP" or category == "Lm" or first in _SMALL_KANA


def _starts_sentence(tail: str, token: str) -> bool:
    text = tail.rstrip()
    ended = text.rstrip(_CLOSERS).endswith(tuple(_TERMINATORS))
    gap = tail[len(text) :]
    lead = token[: len(token) - len(token.lstrip())]
    if not text or "\n" in gap or (ended and gap):
        return False  # it has begun already
    if "\n" in lead:
        return True
    if not ended or gap:
        return False
    if lead:
        return True
    wide = text.rstrip(_CLOSERS)[-1] in _WIDE_TERMINATORS
    return wide and token[0] not in _CLOSERS + _TERMINATORS


def _is_wide(char: str) -> bool:
    code = ord(char)
    if code < 0x3000:
        return False
    return any(low <= code <= high for low, high in _WORD_RANGES + _PUNCTUATION_RANGES)
