"""Masks against brute force, and what is refused."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from itertools import product

import pytest

from cluster.errors import CuveeError, InternalError, InvalidRequest, Unsupported
from cluster.text.grammar import MAX_FORMAT_BYTES, Guide, OutputFormat, make_tokenizer
from cluster.text.member import MemberText
from cluster.text.vocabulary import Vocabulary
from tests.members.factories import member_text

MAKES = ("gpt2", "bytes", "llama2", "unigram", "superwords", "llama3")


def regex(text: str) -> OutputFormat:
    return OutputFormat("regex", text)


def ids_of(mask: bytes, size: int) -> set[int]:
    return {i for i in range(size) if mask[i // 8] >> i % 8 & 1}


def allowed(text: MemberText, guide: Guide, ids: Sequence[int]) -> set[int]:
    return ids_of(guide.allowed(list(ids)), text.vocabulary.size)


def words(pattern: str) -> set[bytes]:
    """All texts that a product of alternatives in parentheses matches."""
    parts = [part.split("|") for part in re.findall(r"\(([^)]*)\)", pattern)]
    return {"".join(chosen).encode() for chosen in product(*parts)}


def digits_by_three(data: bytes) -> tuple[bool, bool]:
    """Of (\\d{3},)*\\d{3} in ASCII: whether it may go on to a match, whether it is one."""
    is_prefix = all(
        (chr(byte) == ",") if i % 4 == 3 else chr(byte) in "0123456789"
        for i, byte in enumerate(data)
    )
    return is_prefix, is_prefix and len(data) % 4 == 3


def among(pattern: str) -> Callable[[bytes], tuple[bool, bool]]:
    whole = words(pattern)
    return lambda data: (any(word.startswith(data) for word in whole), data in whole)


LANGUAGES: dict[str, Callable[[bytes], tuple[bool, bool]]] = {
    pattern: among(pattern)
    for pattern in (
        "(yes|no|maybe)",
        "(the quick |The )(brown fox|dog|dogs)(| and the dog)",
        "(Ünïcödé| façade|Straße|Привет|你好|日本語|👩‍👩‍👧|é|è)(!|。|)",
        "(def add|import)(\n|\n\t|  )(x|\x7f|\x00|'|/|\")",
    )
} | {r"([0-9]{3},)*[0-9]{3}": digits_by_three}


@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("pattern", LANGUAGES)
def test_an_id_is_allowed_if_and_only_if_its_bytes_go_on_with_a_match(
    make: str, pattern: str
) -> None:
    text, draws, judge = member_text(make), random.Random(1), LANGUAGES[pattern]
    ends, spelled = set(text.end_ids), text.token_bytes
    guide = text.guide(regex(pattern))
    for _ in range(6):
        ids: list[int] = []
        while len(ids) < 24:
            said = b"".join(spelled[i] for i in ids)
            expected = {
                i
                for i, data in enumerate(spelled)
                if data and i not in ends and judge(said + data)[0]
            }
            expected |= ends if judge(said)[1] else set()
            assert allowed(text, guide, ids) == expected, said
            going_on = sorted(expected - ends)
            if not going_on:
                break
            ids.append(draws.choice(going_on))


@pytest.mark.parametrize("make", MAKES)
def test_a_mask_depends_on_the_ids_alone_however_they_are_cut_back(make: str) -> None:
    text, draws = member_text(make), random.Random(2)
    wanted = OutputFormat("json_schema", json.dumps({"type": "array", "items": {"type": "string"}}))
    guide, ids = text.guide(wanted), list[int]()
    for _ in range(60):
        if draws.random() < 0.3:
            del ids[draws.randrange(len(ids) + 1) :]
        found = allowed(text, guide, ids)
        assert found == allowed(text, text.guide(wanted), ids)
        going_on = sorted(found - set(text.end_ids))
        ids = [*ids, draws.choice(going_on)] if going_on else []


def test_ends_of_turn_and_control_tokens_are_never_text() -> None:
    vocabulary = Vocabulary(
        token_bytes=(b"", b"a", b"b", b"a", b"ab", b"\xff", b""),
        special=frozenset({0, 6}),
        special_strings={},
        byte_faithful=True,
        unspelled=frozenset(),
        eos_ids=(0,),
    )
    guide = Guide(make_tokenizer(vocabulary, (0, 2)), regex("(a|b|\U000fffff)*"))
    assert ids_of(guide.allowed([]), 7) == {0, 1, 2, 3, 4}  # 2 spells b, but ends the turn
    guide = Guide(make_tokenizer(vocabulary, (0, 2)), regex("(b|ab)a"))
    assert ids_of(guide.allowed([]), 7) == {1, 3, 4}
    guide = Guide(make_tokenizer(vocabulary, (0, 2)), regex("ab?"))
    assert ids_of(guide.allowed([]), 7) == {1, 3, 4}
    assert ids_of(guide.allowed([1]), 7) == {0, 2}
    assert ids_of(guide.allowed([4]), 7) == {0, 2}


def test_a_member_whose_turn_has_no_end_is_refused() -> None:
    vocabulary = member_text("gpt2").vocabulary
    with pytest.raises(Unsupported) as caught:
        make_tokenizer(vocabulary, ())
    assert (caught.value.reason, caught.value.field) == ("NO_END_OF_TURN", "format")


def test_a_dead_end_is_an_error() -> None:
    text = member_text("unigram_without_bytes")
    spelled = text.token_bytes
    with pytest.raises(Unsupported) as caught:
        text.guide(regex("\U0001f70f"))  # no token has these bytes
    assert (caught.value.reason, caught.value.field) == ("FORMAT_DEAD_END", "format.regex")
    guide = text.guide(regex("a\U0001f70f"))
    with pytest.raises(Unsupported, match="no token of this member goes on"):
        guide.allowed([spelled.index(b"a")])


def test_what_is_too_hard_to_follow_is_an_error() -> None:
    text = member_text("gpt2")
    kinds = [
        {"type": "object", "properties": {f"k{i}-{j}": {"type": "string"} for j in range(20)}}
        for i in range(60)
    ]
    guide = text.guide(in_schema({"anyOf": kinds}))
    with pytest.raises(Unsupported, match=r"too hard to follow: .* max is 2000") as caught:
        guide.allowed([text.token_bytes.index(b"{"), text.token_bytes.index(b'"')])
    assert (caught.value.reason, caught.value.field) == ("FORMAT_TOO_COMPLEX", "format.json_schema")


def test_a_reply_that_left_its_format_is_a_defect() -> None:
    text = member_text("gpt2")
    guide = text.guide(regex("a+"))
    with pytest.raises(InternalError, match="not in its format"):
        guide.allowed([text.token_bytes.index(b"b")])


def in_schema(schema: object) -> OutputFormat:
    return OutputFormat("json_schema", json.dumps(schema))


WRONG: list[tuple[Callable[[], OutputFormat], str]] = [
    (lambda: regex(""), "got no text"),
    (lambda: regex("a" * (MAX_FORMAT_BYTES + 1)), "bytes; expected a regular expression"),
    (lambda: regex("é" * (MAX_FORMAT_BYTES // 2 + 1)), "bytes; expected a regular expression"),
    (lambda: OutputFormat("json_schema", ""), "got no text"),
    (lambda: OutputFormat("json_schema", '{"a": '), "got no valid JSON: Expecting value"),
    (lambda: OutputFormat("json_schema", '{"a":' * 9000), "got no valid JSON: maximum recursion"),
    (lambda: in_schema([]), "got JSON that is no object"),
    (lambda: in_schema({"x-guidance": {"lenient": True}}), "x-guidance"),
]
REFUSED: list[tuple[OutputFormat, str]] = [
    (regex("(a"), "unclosed group"),
    (regex("a{2,1}"), "invalid repetition"),
    (regex("(?=a)b"), "look-around"),
    (regex(r"(a)\1"), "backreferences"),
    (regex(r"a\b"), "lookarounds not supported"),
    (regex(r"(?-u:\xff)"), "invalid UTF-8"),
    (regex("ab\\"), "within an escape"),
    (regex("ab\\\\\\"), "within an escape"),
    (regex("(" * 30000 + ")" * 30000), "maximum number of nested"),
    (in_schema({"type": "strin"}), "Invalid type: strin"),
    (in_schema({"type": "string", "not": {}}), "Unimplemented keys"),
    (in_schema({"type": "array", "uniqueItems": True}), "Unimplemented keys"),
    (in_schema({"$ref": "#/nowhere"}), "does not exist"),
    (in_schema({"$ref": "http://example.com/x.json"}), "does not fetch"),
    (in_schema({"enum": []}), "Unsatisfiable"),
    (in_schema({"type": "string", "pattern": "(a"}), "unclosed group"),
]


@pytest.mark.parametrize(("make_one", "words"), WRONG)
def test_what_is_wrong_at_sight_is_refused_without_the_library(
    make_one: Callable[[], OutputFormat], words: str
) -> None:
    with pytest.raises(InvalidRequest, match=re.escape(words)) as caught:
        make_one()
    assert caught.value.field in ("format.regex", "format.json_schema")


@pytest.mark.parametrize(("wanted", "words"), REFUSED)
def test_what_cannot_be_kept_to_is_refused_with_the_librarys_reason(
    wanted: OutputFormat, words: str
) -> None:
    with pytest.raises(InvalidRequest, match=re.escape(words)) as caught:
        member_text("gpt2").guide(wanted)
    assert caught.value.field == wanted.field
    assert "%llguidance" not in caught.value.message
    assert len(caught.value.message) < 600


@pytest.mark.parametrize(
    "text", ["a/b", 'x/ "yes"', "x/\nfoo: /y", "#x", "(?i:a)/i", "[/]", "a\\\\", "^a$", "%json a"]
)
def test_an_expression_is_never_read_as_a_grammar(text: str) -> None:
    """Each is matched by exactly one of these, and by what Python's `re` says."""
    member = member_text("bytes")
    guide = member.guide(regex(text))
    candidates = ["a/b", 'x/ "yes"', "x/\nfoo: /y", "#x", "a/i", "A/i", "/", "a\\", "a", "%json a"]
    matched = 0
    for said in candidates:
        try:
            ids = [member.token_bytes.index(bytes([byte])) for byte in said.encode()]
            ends = allowed(member, guide, ids) & set(member.end_ids)
        except CuveeError:
            ends, guide = set(), member.guide(regex(text))
        assert bool(ends) == bool(re.fullmatch(text, said))
        matched += bool(ends)
    assert matched >= 1
