"""Canonical tokenization, whole and by pieces, over every make of tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer

import cluster.models
from cluster.text.retokenize import Canonical
from cluster.text.vocabulary import Vocabulary
from tests.text.text_samples import texts
from tests.text.tokenizer_factory import CONTROLS, MAKES, NOT_INCREMENTAL, make, make_canonical

EMBEDDED = sorted(Path(cluster.models.__file__).parent.glob("embedded/*/tokenizer.json"))
FETCHED = sorted(Path.home().glob(".cache/cuvee/models/*/tokenizer.json"))
FOLDERS = [path.parent for path in EMBEDDED] + [
    pytest.param(path.parent, marks=pytest.mark.real) for path in FETCHED
]


def check_edits(canonical: Canonical, num_examples: int) -> None:
    @settings(max_examples=num_examples, deadline=None)
    @given(st.lists(st.tuples(st.integers(0, 12), texts), min_size=1, max_size=4))
    @example([(0, "[INST][INST]"), (11, "<0x41><|im_start|>")])  # a name cut off by `^.{7}`
    @example([(0, "a b"), (1, "\u0308c d"), (0, "\n"), (3, " e")])
    def check(edits: list[tuple[int, str]]) -> None:
        text, ids = "", canonical.encode("")
        for num_cut, added in edits:
            new = text[: max(0, len(text) - num_cut)] + added
            keep, tail = canonical.extend(text, ids, new)
            whole = canonical.encode(new)
            assert ids[:keep] + tail == whole
            assert ids[keep : keep + 1] != whole[keep : keep + 1] or not tail
            text, ids = new, whole

    check()


@pytest.mark.parametrize("name", sorted(MAKES))
def test_extending_equals_encoding_the_whole(name: str) -> None:
    check_edits(make_canonical(name), 100)


@pytest.mark.parametrize("name", sorted(MAKES))
def test_boundaries_are_used_where_they_hold_and_only_there(name: str) -> None:
    assert make_canonical(name).is_incremental == (name not in NOT_INCREMENTAL)


@pytest.mark.parametrize("name", sorted(set(MAKES) - NOT_INCREMENTAL))
def test_the_cost_is_that_of_the_changed_tail(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    canonical = make_canonical(name)
    old = "the quick brown fox jumps over the lazy dog, and " * 40
    ids = canonical.encode(old)
    seen: list[str] = []
    encode = canonical.encode

    def spy(text: str) -> list[int]:
        seen.append(text)
        return encode(text)

    monkeypatch.setattr(canonical, "encode", spy)
    keep, tail = canonical.extend(old, ids, old + "the end")
    assert sum(map(len, seen)) < 40
    assert keep > len(ids) - 3
    assert ids[:keep] + tail == encode(old + "the end")


@pytest.mark.parametrize("name", sorted(MAKES))
def test_no_text_becomes_a_control_token(name: str) -> None:
    tokenizer, vocabulary = make(name)
    canonical = make_canonical(name)
    unknown = tokenizer.convert_tokens_to_ids("<unk>")

    @settings(max_examples=60, deadline=None)
    @given(st.lists(st.sampled_from([*CONTROLS, "<", "s>", " ", "a", "|>"]), max_size=8))
    def check(parts: list[str]) -> None:
        ids = set(canonical.encode("".join(parts)))
        assert not ids & (vocabulary.special - {unknown})

    check()


@pytest.mark.parametrize("name", sorted(MAKES))
def test_plain_text_is_encoded_as_the_tokenizer_does_at_the_start(name: str) -> None:
    tokenizer, _ = make(name)
    canonical = make_canonical(name)
    for text in ("Hello the world", " Hello", "  two", "", "\nx", "it's 3.14"):
        expected = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
        assert canonical.encode_section(text, at_start=True) == expected


def test_the_given_tokenizer_is_left_as_it_was() -> None:
    tokenizer = MAKES["llama2"]()
    before = tokenizer.backend_tokenizer.to_str()
    Canonical(tokenizer, Vocabulary.load(tokenizer)).encode("</s>")
    assert tokenizer.backend_tokenizer.to_str() == before
    assert tokenizer.encode("</s>", add_special_tokens=False) == [tokenizer.eos_token_id]


@pytest.mark.parametrize(
    ("add", "pattern"),
    [
        (AddedToken("joined words", special=False, normalized=False), None),
        (AddedToken("word", special=False, single_word=True), None),
        (AddedToken("word", special=False, rstrip=True), None),
        (None, r"(?<=a) b|\s+"),
        (None, r"^.{7}|\s+"),
    ],
)
def test_what_reaches_across_boundaries_disables_them(add: Any, pattern: str | None) -> None:
    tokenizer = MAKES["llama3"]()
    if add:
        tokenizer.add_tokens([add])
    if pattern:
        spec = json.loads(tokenizer.backend_tokenizer.to_str())
        spec["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = pattern
        tokenizer._tokenizer = Tokenizer.from_str(json.dumps(spec))
    canonical = Canonical(tokenizer, Vocabulary.load(tokenizer))
    assert not canonical.is_incremental
    check_edits(canonical, 30)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_real_tokenizers_are_faithful_and_incremental(folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    vocabulary = Vocabulary.load(tokenizer)
    canonical = Canonical(tokenizer, vocabulary)
    assert vocabulary.byte_faithful
    assert canonical.is_incremental
    check_edits(canonical, 100)

    @settings(max_examples=60, deadline=None)
    @given(texts)
    def check(text: str) -> None:
        spelled = b"".join(vocabulary.token_bytes[i] for i in canonical.encode(text))
        if vocabulary.unspelled.isdisjoint(text.encode()):
            assert spelled == text.encode()

    check()
