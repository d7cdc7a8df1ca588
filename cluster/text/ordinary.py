"""Text as ordinary text: no string typed by anyone becomes a control token.

A private copy of the tokenizer encodes what it is given and nothing else: no space in front, no
start token, no control token however the text spells one. Three ways in which vocabularies still
let them through are closed by cutting the text inside what they would match: control tokens that
are also ordinary pieces, "<0x0A>" read as the byte piece of that name, and a literal "▁" read as
the space it stands for.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from tokenizers import Tokenizer

from cluster.text.vocabulary import METASPACE, Vocabulary, types_in


@dataclass(frozen=True, slots=True)
class ControlToken:
    """A special token as templates write it."""

    id: int
    text: str
    lstrip: bool  # takes the white space before it as well
    rstrip: bool  # takes the white space after it as well


class OrdinaryEncoder:
    """Encodes text without context; knows what the tokenizer would have put in front."""

    def __init__(self, tokenizer: Any, vocabulary: Vocabulary) -> None:
        spec: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
        self.start_ids = _start_ids(tokenizer.backend_tokenizer)
        self.controls = tuple(
            ControlToken(token["id"], token["content"], token["lstrip"], token["rstrip"])
            for token in spec["added_tokens"]
            if token["special"]
        )
        spec.update(truncation=None, padding=None, post_processor=None)
        spec["model"]["dropout"] = None
        self._always_prefixed = _drop_prepend(spec)
        self._prefix_scheme = _drop_prefix_space(spec)  # "always", "first" or "never"
        self._backend = Tokenizer.from_str(json.dumps(spec, ensure_ascii=False))
        self._backend.encode_special_tokens = True  # "encode them like any text"
        self._specials = vocabulary.special - _unknown(tokenizer, vocabulary)
        kinds = set(types_in(spec["decoder"]))
        self._metaspace_ids = self._literal_metaspace_ids(kinds)
        self.cut_strings = self._find_cut_strings(spec, vocabulary, kinds)
        self._cuts = re.compile("(?=" + "|".join(map(re.escape, self.cut_strings)) + ")")
        model = {key: value for key, value in spec["model"].items() if not _is_bulk(value)}
        self.spec = {**spec, "model": model}  # how it works, without the lists

    def encode(self, text: str) -> list[int]:
        """The ids of `text` alone."""
        if not self.cut_strings or self._cuts.search(text) is None:
            return self._encode_piece(text)
        ids: list[int] = []
        start = 0
        for match in self._cuts.finditer(text):
            at = match.start()
            if text[at] == METASPACE and self._metaspace_ids:
                ids += self._encode_piece(text[start:at]) + self._metaspace_ids
            else:
                ids += self._encode_piece(text[start : at + 1])
            start = at + 1
        return ids + self._encode_piece(text[start:])

    def encode_section(self, text: str, *, at_start: bool) -> list[int]:
        """The ids of a prompt's stretch between control tokens, with the space put in front."""
        if text and self._always_prefixed:
            text = " " + text
        scheme = self._prefix_scheme
        if (
            text
            and not text.startswith(" ")
            and (scheme == "always" or (at_start and scheme == "first"))
        ):
            text = " " + text
        return self.encode(text)

    def _encode_piece(self, text: str) -> list[int]:
        if not text:
            return []
        encoding = self._backend.encode(text, add_special_tokens=False)
        ids: list[int] = encoding.ids
        if self._specials.isdisjoint(ids):
            return ids
        # Only here, by what stands around it, did a name become a token of its own: cut it as well
        tokens = zip(ids, encoding.offsets, strict=True)
        cuts = [start + 1 for i, (start, _) in tokens if i in self._specials]
        assert cuts[-1] < len(text), "ordinary text became a control token of one character"
        pieces = (text[a:b] for a, b in pairwise([0, *cuts, len(text)]))
        return [i for piece in pieces for i in self._encode_piece(piece)]

    def _find_cut_strings(
        self, spec: dict[str, Any], vocabulary: Vocabulary, kinds: set[str]
    ) -> tuple[str, ...]:
        strings = []
        names = [name for name in vocabulary.special_strings if len(name) > 1]
        for name, encoding in zip(names, self._backend.encode_batch(names), strict=True):
            if not vocabulary.special.isdisjoint(encoding.ids):
                strings.append(name)
        if spec["model"]["type"] == "Unigram" and "ByteFallback" in kinds:
            strings += [f"<0x{byte:02X}>" for byte in range(256)]
        return (*strings, METASPACE) if self._metaspace_ids else tuple(strings)

    def _literal_metaspace_ids(self, kinds: set[str]) -> list[int]:
        """A real "▁" spelled in bytes; without byte pieces it cannot be told from a space."""
        if "ByteFallback" not in kinds:
            return []
        ids = (self._backend.token_to_id(f"<0x{byte:02X}>") for byte in METASPACE.encode())
        found = [i for i in ids if i is not None]
        return found if len(found) == len(METASPACE.encode()) else []


def _start_ids(backend: Any) -> tuple[int, ...]:
    """What the tokenizer puts before every text by itself, such as <s>."""
    plain = backend.encode("a", add_special_tokens=False).ids
    whole = backend.encode("a", add_special_tokens=True).ids
    starts = (n for n in range(len(whole)) if plain and whole[n : n + len(plain)] == plain)
    return tuple(whole[: next(starts, 0)])


def _unknown(tokenizer: Any, vocabulary: Vocabulary) -> set[int]:
    """The unknown token may well come out of ordinary text."""
    model = tokenizer.backend_tokenizer.model
    name = getattr(model, "unk_token", None) or tokenizer.unk_token
    ids = {vocabulary.special_strings.get(name), getattr(model, "unk_id", None)}
    return {i for i in ids if i is not None}


def _drop_prepend(spec: dict[str, Any]) -> bool:
    """Remove the normalizer that puts "▁" before each section (Llama 2's way)."""
    normalizer = spec["normalizer"]
    if not normalizer:
        return False
    if normalizer["type"] == "Prepend":
        spec["normalizer"] = None
        return True
    parts = normalizer.get("normalizers", [])
    kept = [part for part in parts if part["type"] != "Prepend"]
    if len(kept) < len(parts):
        normalizer["normalizers"] = kept
    return len(kept) < len(parts)


def _drop_prefix_space(spec: dict[str, Any]) -> str:
    """Tell the pre-tokenizer to put no space in front; what it did before."""
    first = spec["pre_tokenizer"]
    while first and first["type"] == "Sequence" and first["pretokenizers"]:
        first = first["pretokenizers"][0]
    scheme = "never"
    if first and first["type"] == "Metaspace":
        scheme = first["prepend_scheme"]
        first["prepend_scheme"] = "never"
    elif first and first["type"] == "ByteLevel" and first["add_prefix_space"]:
        scheme = "always"
        first["add_prefix_space"] = False
    return scheme


def _is_bulk(value: object) -> bool:
    return isinstance(value, (list, dict))
