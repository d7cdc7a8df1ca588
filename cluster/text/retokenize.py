"""Canonical tokens of a growing text, at the cost of what changed.

A text has one canonical tokenization: what the tokenizer makes of it, as the continuation of a
prompt, in one go. When the text grows or changes at its end, all tokens before the last *stable
boundary* stay, and only the rest is tokenized again. A boundary is a place between a letter and a
space, newline or CJK punctuation mark. It is stable if nothing in the tokenizer reaches across:

- no token contains a letter followed by that mark, so no merge joins the two sides;
- no pattern looks behind or at positions, so the right side is cut the same way on its own;
- the parts are of kinds known to work so, and cutting a varied sample there changes nothing.

A tokenizer for which this cannot be shown gets the whole text tokenized again: slower, as right.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from cluster.text.ordinary import OrdinaryEncoder
from cluster.text.vocabulary import Vocabulary, types_in

_MARKS = " \n，。、！？"
_SAMPLE = (
    "It's a test, isn't it? We'll  see\n\nif they're here.\n\tdef f(x):\n        return x + 1 # ok"
    "\nIn the end of the day, one of the best is at the same time as well as to be the first.\n"
    "The U.S. had 3.14 and 1,000,000 users in 2024 for $5 or 10€ ... \"quoted\" 'words' (or) so-- "
    "CamelCase snake_case HTTP2Server a b c x1 y2 \u0130stanbul e\u0301te\u0301 naïve Straße ÅÄ\n "
    "你好，世界。 我们 今天 去 公园！ 好吗？ 日本語、テスト です。 カタカナ\nひらがな 한국어 문장 "
    "Привет мир, как дела? Καλημέρα κόσμε Σίσυφος ος ά שלום עולם مرحبا بالعالم नमस्ते दुनिया สวัสดี ชาว "
    "smile 😀 family 👩‍👩‍👧 flag 🏳️‍🌈 end a ' s b 't c \u0308d \u200be f \u00a0g\r\nh \t i\n j   k "
)
_SUSPECT = re.compile(  # a token that may cross one of them, at a glance
    b"[A-Za-z\\x80-\\xff][" + b"".join({re.escape(mark.encode()[:1]) for mark in _MARKS}) + b"]"
)
_NORMALIZERS = {"Sequence", "Replace", "NFC", "NFD", "NFKC", "NFKD", "Lowercase"}
_PRE_TOKENIZERS = {"Sequence", "Split", "ByteLevel", "Metaspace", "Digits", "Punctuation"}
_REACHES_BACK = re.compile(r"\(\?<[=!]|\\[bBAGKzZ]|(?<!\[)\^")


class Canonical:
    """One tokenizer's canonical tokenization of texts that continue a prompt."""

    def __init__(self, tokenizer: Any, vocabulary: Vocabulary) -> None:
        self._encoder = OrdinaryEncoder(tokenizer, vocabulary)
        self.start_ids = self._encoder.start_ids  # what begins every prompt of plain text
        self.controls = self._encoder.controls  # the tokens no text can spell
        strings = [*vocabulary.token_bytes, *(text.encode() for text in self._encoder.cut_strings)]
        suspects = [data for data in strings if _SUSPECT.search(data)]
        marks = _possible_marks(self._encoder.spec)
        marks = "".join(mark for mark in marks if not _crossed(mark, suspects))
        self._marks = "".join(mark for mark in marks if self._holds(mark))

    @property
    def is_incremental(self) -> bool:
        """Whether spaces after letters are stable boundaries, so that `extend` costs the change."""
        return " " in self._marks

    def encode(self, text: str) -> list[int]:
        """The ids of continuation text alone; never control tokens, whatever it spells."""
        return self._encoder.encode(text)

    def encode_section(self, text: str, *, at_start: bool) -> list[int]:
        """The ids of prompt text between control tokens, as the tokenizer itself begins one."""
        return self._encoder.encode_section(text, at_start=at_start)

    def extend(self, old_text: str, old_ids: list[int], new_text: str) -> tuple[int, list[int]]:
        """(keep, tail) such that `old_ids[:keep] + tail == encode(new_text)`, keep the largest.

        `old_ids` must be `encode(old_text)`.
        """
        boundary = self._last_boundary(old_text, new_text)
        tail = self.encode(new_text[boundary:])
        keep = 0
        if boundary:
            old_tail = self.encode(old_text[boundary:])
            keep = len(old_ids) - len(old_tail)
            assert old_ids[keep:] == old_tail, "old_ids are not the canonical ids of old_text"
        num_same = 0
        for old, new in zip(old_ids[keep:], tail, strict=False):
            if old != new:
                break
            num_same += 1
        return keep + num_same, tail[num_same:]

    def _last_boundary(self, old: str, new: str) -> int:
        """The last stable boundary whose two characters both texts share; 0 if there is none."""
        for at in range(_num_common(old, new) - 1, 0, -1):
            if new[at] in self._marks and _is_letter(new[at - 1]):
                return at
        return 0

    def _holds(self, mark: str) -> bool:
        whole = self.encode(_SAMPLE)
        places = [at for at in range(1, len(_SAMPLE)) if _SAMPLE[at] == mark]
        return all(
            self.encode(_SAMPLE[:at]) + self.encode(_SAMPLE[at:]) == whole
            for at in places
            if _is_letter(_SAMPLE[at - 1])
        )


def _is_letter(char: str) -> bool:
    """Letters of the basic plane: on those, all versions of Unicode in use here agree."""
    return char < "\U00010000" and char.isalpha()


def _num_common(old: str, new: str) -> int:
    """Length of the common prefix, by comparing halves: strings compare far faster than loops."""
    if new.startswith(old):
        return len(old)
    low, high = 0, min(len(old), len(new)) + 1  # [:low] is common, [:high] is not
    while high - low > 1:
        middle = (low + high) // 2
        if new.startswith(old[low:middle], low):
            low = middle
        else:
            high = middle
    return low


def _possible_marks(spec: dict[str, Any]) -> str:
    """Which marks the kinds of the tokenizer's parts allow for."""
    normalizer, pre_tokenizer, model = spec["normalizer"], spec["pre_tokenizer"], spec["model"]
    if not set(types_in(normalizer)) <= _NORMALIZERS:
        return ""
    if not set(types_in(pre_tokenizer)) <= _PRE_TOKENIZERS:
        return ""
    if any(_REACHES_BACK.search(pattern) for pattern in _patterns([normalizer, pre_tokenizer])):
        return ""
    if any(t["lstrip"] or t["rstrip"] or t["single_word"] for t in _ordinary_added(spec)):
        return ""
    if {"NFKC", "NFKD"} & set(types_in(normalizer)):
        return " "  # the other marks, and so what they meet, may turn into something else
    if model["type"] == "BPE":
        return _MARKS
    # Unigram weighs whole stretches by sums of floats: sure only where the stretch itself ends
    splits = any(part.get("split") for part in _parts(pre_tokenizer) if part["type"] == "Metaspace")
    return " " if model["type"] == "Unigram" and splits else ""


def _crossed(mark: str, tokens: Sequence[bytes]) -> bool:
    """Whether a token holds the end of a letter and the beginning of the mark."""
    whole = mark.encode()
    beginnings = [whole[:n] for n in range(1, len(whole))]
    inside = re.compile(f"(?:[^\\W\\d_]|\ufffd){mark}")  # U+FFFD: a letter cut short
    for data in tokens:
        if any(data.endswith(part) and data != part for part in beginnings):
            return True
        if whole in data and inside.search(data.decode("utf-8", "replace")):
            return True
    return False


def _ordinary_added(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [token for token in spec["added_tokens"] if not token["special"]]


def _parts(component: Any) -> list[dict[str, Any]]:
    if not component:
        return []
    inner = component.get("pretokenizers")
    return [component] if inner is None else [part for each in inner for part in _parts(each)]


def _patterns(component: Any) -> Iterator[str]:
    """Every regular expression inside a tokenizer.json component."""
    if isinstance(component, list):
        for value in component:
            yield from _patterns(value)
    elif isinstance(component, dict):
        for key, value in component.items():
            if key == "Regex":
                yield value
            else:
                yield from _patterns(value)
