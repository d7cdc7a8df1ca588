"""What bytes each token id stands for, whatever the tokenizer's make.

A vocabulary is compared by content: two members with one fingerprint may exchange token ids, two
without exchange bytes. How text is cut into tokens is not its business (see `retokenize`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from cluster.errors import Unsupported

METASPACE = "▁"  # how SentencePiece writes a space

# What normalizers like to change: compatibility forms, combining marks, case, odd white space,
# and rare characters, which a vocabulary without a token for every byte cannot spell.
_PROBE = (
    "  Two  spaces,\ttabs\r\n\n and Ünïcödé: e\u0301 \u212b ﬁ Ⅳ ½ ｆｕｌｌ ş \u00a0x\u200b\u3000y "
    "中文、日本語 한국어 \u1112\u1161 ไทย עברית हिन्दी 👩‍👩‍👧 🏳️‍🌈 \ue123 \U000e0041 <b>#if{x}</b> "
)
_UTF8_BYTES = frozenset(range(256)) - {0xC0, 0xC1, *range(0xF5, 0x100)}
# Bytes that real vocabularies do without: control characters, and planes Unicode left empty.
_DISPENSABLE = frozenset({*range(0x20), 0x7F, 0xF1, 0xF2}) - {*b"\t\n\r"}
_FAITHFUL_NORMALIZERS = {"Sequence", "Prepend", "Replace"}


@dataclass(frozen=True)
class Vocabulary:
    """The content of a tokenizer's vocabulary, by id."""

    token_bytes: tuple[bytes, ...]  # b"" for special tokens: they are no text
    special: frozenset[int]  # control tokens, the unknown token, and ids without a token
    special_strings: Mapping[str, int]  # how control tokens are written in templates
    byte_faithful: bool  # whether an encoded text's bytes are the text's (but for `unspelled`)
    unspelled: frozenset[int]  # bytes without a token, if rare ones: their characters get lost
    eos_ids: tuple[int, ...]  # what the tokenizer itself calls the end

    @classmethod
    def load(cls, tokenizer: Any) -> Vocabulary:
        """Read a Hugging Face fast tokenizer; Unsupported if its tokens do not stand for bytes."""
        name = type(tokenizer).__name__
        if not getattr(tokenizer, "is_fast", False):
            raise Unsupported(
                "TOKENIZER_NOT_FAST",
                f"{name} is not backed by the tokenizers library; save the model with a "
                "tokenizer.json",
            )
        backend = tokenizer.backend_tokenizer
        spec: dict[str, Any] = json.loads(backend.to_str())
        to_bytes = _byte_reader(spec["decoder"], name)
        ids: dict[str, int] = backend.get_vocab(with_added_tokens=True)
        added = {int(i): token for i, token in backend.get_added_tokens_decoder().items()}
        controls = {i for i, token in added.items() if token.special}
        controls |= set(tokenizer.all_special_ids) | _unknown_ids(spec["model"])
        token_bytes = [b""] * (max([*ids.values(), *added]) + 1)
        for token, i in ids.items():
            token_bytes[i] = token.encode() if i in added else to_bytes(token)
        for i in controls:
            token_bytes[i] = b""
        holes = set(range(len(token_bytes))) - set(ids.values()) - set(added)
        unspelled = _UTF8_BYTES - {data[0] for data in token_bytes if len(data) == 1}
        faithful = (
            unspelled <= _DISPENSABLE
            and all(kind in _FAITHFUL_NORMALIZERS for kind in types_in(spec["normalizer"]))
            and _spells_itself(backend, token_bytes)
        )
        strings = {added[i].content if i in added else backend.id_to_token(i): i for i in controls}
        eos = tokenizer.eos_token_id
        return cls(
            token_bytes=tuple(token_bytes),
            special=frozenset(controls | holes),
            special_strings=strings,
            byte_faithful=faithful,
            unspelled=unspelled,
            eos_ids=() if eos is None else (eos,),
        )

    @property
    def size(self) -> int:
        """One more than the largest id; a model's embedding may have more rows."""
        return len(self.token_bytes)

    @cached_property
    def fingerprint(self) -> str:
        """Equal for equal content, whatever the file: sha256 over (id, bytes, special)."""
        digest = hashlib.sha256()
        for i, data in enumerate(self.token_bytes):
            digest.update(b"%d %d %d:%b" % (i, i in self.special, len(data), data))
        return digest.hexdigest()

    def end_ids(self, *given: int | Sequence[int] | None) -> tuple[int, ...]:
        """The ids that end a turn: those given by generation or model configs, and our own."""
        ids = set(self.eos_ids)
        for each in given:
            ids.update([] if each is None else [each] if isinstance(each, int) else each)
        return tuple(sorted(i for i in ids if 0 <= i < self.size))


def types_in(component: Any) -> Iterator[str]:
    """The `type` of a tokenizer.json component and of all inside it."""
    if isinstance(component, dict):
        if "type" in component:
            yield component["type"]
        for value in component.values():
            yield from types_in(value)
    elif isinstance(component, list):
        for value in component:
            yield from types_in(value)


class _ByteLevel:
    """GPT-2's way: one printable character for each byte."""

    def __init__(self) -> None:
        shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
        hidden = [byte for byte in range(256) if byte not in shown]
        self._bytes = {byte: byte for byte in shown}
        self._bytes |= {256 + i: byte for i, byte in enumerate(hidden)}

    def __call__(self, token: str) -> bytes:
        if all(ord(char) in self._bytes for char in token):
            return token.translate(self._bytes).encode("latin-1")
        return token.encode()


class _Metaspace:
    """SentencePiece's way: "▁" for a space, and maybe <0xNN> for a byte no piece contains."""

    def __init__(self, replacement: str, byte_fallback: bool) -> None:
        self._replacement = replacement
        self._bytes = {f"<0x{i:02X}>": bytes([i]) for i in range(256)} if byte_fallback else {}

    def __call__(self, token: str) -> bytes:
        return self._bytes.get(token) or token.replace(self._replacement, " ").encode()


def _byte_reader(decoder: Any, name: str) -> _ByteLevel | _Metaspace:
    kinds = [kind for kind in types_in(decoder) if kind != "Sequence"]
    parts = decoder.get("decoders", [decoder]) if decoder else []
    if "ByteLevel" in kinds and set(kinds) <= {"ByteLevel", "Fuse"}:
        return _ByteLevel()
    replacements = [part["replacement"] for part in parts if part["type"] == "Metaspace"]
    for part in parts:
        if part["type"] == "Replace":
            spaced = part["content"] == " " and "String" in part["pattern"]
            replacements.append(part["pattern"]["String"] if spaced else "")
    known = {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}
    if len(set(replacements)) == 1 and replacements[0] and set(kinds) <= known:
        return _Metaspace(replacements[0], "ByteFallback" in kinds)
    raise Unsupported(
        "TOKENIZER_NOT_SUPPORTED",
        f"{name} decodes with {' + '.join(kinds) or 'nothing'}; Cuvée reads byte-level and "
        "SentencePiece-style vocabularies, whose tokens stand for fixed bytes",
    )


def _unknown_ids(model: dict[str, Any]) -> set[int]:
    if model.get("unk_id") is not None:
        return {model["unk_id"]}
    unknown = model.get("unk_token")
    vocab = model.get("vocab")
    return {vocab[unknown]} if isinstance(vocab, dict) and unknown in vocab else set()


def _spells_itself(backend: Any, token_bytes: Sequence[bytes]) -> bool:
    ids = backend.encode(_PROBE, add_special_tokens=False).ids
    spelled = b"".join(token_bytes[i] for i in ids)
    return spelled in (_PROBE.encode(), b" " + _PROBE.encode())  # some put a space before all
