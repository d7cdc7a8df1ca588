"""Members with unlike tokenizers make one text, byte for byte, over the whole path.

Every member is a parrot that knows the text by heart, so it goes on rightly only if its replica
told it exactly what the others had said, in tokens that its own tokenizer would have made of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import pytest
import pytest_asyncio

from cluster.members.replica import Replica
from cluster.spec import MemberSpec
from cuvee.v1 import generation_pb2
from tests.members.factories import make_replica, member_text
from tests.members.parrot import Parrot
from tests.rig import Rig, running

pytestmark = pytest.mark.asyncio(loop_scope="module")

MAKES = ("gpt2", "bytes", "llama2", "mistral", "unigram", "superwords", "llama3")
TEXTS = {
    "composed": "Ünïcödé façade, naïve Straße? Crème brûlée à gogo! Ångström's Øre. Ça va, été.",
    "decomposed": "Cafe\u0301 de\u0301ja\u0300 vu. A\u030angstro\u0308m \u212b? e\u0301\u0323",
    "chinese": "你好，世界。我们今天去公园！好吗？𠮷野家。",
    "japanese": "日本語、テストです。ひらがなとカタカナ？\u3000はい。",
    "korean": "한국어 문장 입니다. \u1112\u1161\u11ab 네!",
    "emoji": "A family 👩‍👩‍👧‍👦 here. Thumbs 👍🏽👍🏿 up! Flags 🏳️‍🌈🇫🇮? Done 😀😀 ☺️.",
    "code": "def add(x, y):\n\tif x:\n\t\treturn  x + y  # the sum\n\n\nclass A:\n    b = 'é'\r\n",
    "spaces": "two  spaces,   three    and\u00a0hard.  Trailing  \n \n  end   \u3000 ",
    "right_to_left": "שלום עולם, מה שלומך? مرحبا بالعالم! \u202bمعكوس\u202c نعم. דֶּגֶל",
    "lines": "a\n\nb\r\nc\n\n\n\nd.\n- e\n- f\n\t\n",
    "controls": "</s> <s>[INST] <|im_start|>user\n<0x0A> ▁▁x <unk> <|end|> it's.",
    "scripts": "नमस्ते दुनिया। สวัสดีชาวโลก Привет! Σας.",
    "odd": "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 ½ Ⅳ ﬁ? \x00\x7f\u200b\ue123 İI. \U0010ffff",
}
PROSE = "It's one of the best things to be here, and the lazy dog doesn't mind the brown fox. "
PAIRS = [("gpt2", "bytes"), ("llama2", "superwords"), ("unigram", "llama3")]
SPANS: list[Any] = [1, 3, "word", "sentence"]
UNITS = {
    "word": generation_pb2.SPAN_UNIT_WORD,
    "sentence": generation_pb2.SPAN_UNIT_SENTENCE,
}
PROMPT = "Say {}:"
SURE = 40.0  # how far a parrot's logits are apart
SAID = {**TEXTS, "prose": PROSE * 4}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rig() -> AsyncIterator[Rig]:
    async def build(name: str, spec: MemberSpec) -> Replica:
        texts = {PROMPT.format(name): said for name, said in SAID.items()}
        return make_replica(name, Parrot(member_text(name), texts), lead=SURE)

    members = "\n".join(f"  {name}: {{model: 'embedded:tiny-bytes'}}" for name in MAKES)
    weights = ", ".join(f"{name}: 1" for name in MAKES)
    blend = f"{{method: mixture, sampling: {{temperature: 0}}, members: {{{weights}}}}}"
    by_bytes = blend.replace("mixture", "ensemble, unit: byte")
    product = by_bytes.replace("ensemble", "ensemble, rule: product")
    blends = f"  all: {blend}\n  bytes: {by_bytes}\n  product: {product}\n"
    spec = f"version: 1\nmembers:\n{members}\nblends:\n{blends}"
    async with running(spec, build=build) as rig:
        yield rig


@dataclass
class Recital:
    """One reply, as a client got it."""

    tokens: list[generation_pb2.Token]
    outcome: Any

    @property
    def num_runs(self) -> int:
        """How often a member took over, and the first one."""
        return 1 + sum(a.member != b.member for a, b in pairwise(self.tokens))

    def usage(self, member: str) -> Any:
        return next(usage for usage in self.outcome.usage.members if usage.member == member)


async def recite(rig: Rig, text: str, speakers: tuple[str, ...], span: Any, seed: int) -> Recital:
    """The reply by turns, which is right."""
    wanted: dict[str, Any] = {"unit": UNITS[span]} if span in UNITS else {"num_tokens": span}
    return await recital(rig, "all", text, speakers, seed, {"span": wanted})


async def recital(
    rig: Rig, blend: str, text: str, speakers: tuple[str, ...], seed: int, overrides: dict[str, Any]
) -> Recital:
    """The reply, which is right."""
    fields: dict[str, Any] = {
        "blend": blend,
        "prompt": PROMPT.format(text),
        "sampling": {"seed": seed},
        "stopping": {"max_tokens": 1000},
        "overrides": {"weights": dict.fromkeys(speakers, 1.0), **overrides},
    }
    request = generation_pb2.StreamGenerateRequest(**fields)
    pieces = [piece async for piece in rig.generation.StreamGenerate(request)]
    deltas = [piece.text_delta for piece in pieces]
    tokens = [token for piece in pieces for token in piece.tokens]
    assert "".join(deltas) == SAID[text]
    assert not any("\ufffd" in delta for delta in deltas)
    assert b"".join(token.bytes for token in tokens) == SAID[text].encode()
    outcome = pieces[-1].outcome
    assert outcome.finish_reason == generation_pb2.FINISH_REASON_END_OF_TURN
    return Recital(tokens, outcome)


def is_whole(data: bytes) -> bool:
    """Whether no character is cut."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


@pytest.mark.parametrize("speakers", [*PAIRS, MAKES], ids="-".join)
@pytest.mark.parametrize("text", sorted(TEXTS))
async def test_the_text_comes_out_byte_for_byte(
    rig: Rig, text: str, speakers: tuple[str, ...]
) -> None:
    recitals = await asyncio.gather(
        *(recite(rig, text, speakers, span, seed) for seed, span in enumerate(SPANS))
    )
    for recital in recitals:
        said = b""
        for token, following in pairwise(recital.tokens):
            said += token.bytes
            assert token.member == following.member or is_whole(said)
    assert {token.member for recital in recitals for token in recital.tokens} == set(speakers)


async def test_members_of_one_vocabulary_may_hand_over_inside_a_character(rig: Rig) -> None:
    assert (
        member_text("llama2").vocabulary.fingerprint
        == member_text("mistral").vocabulary.fingerprint
    )
    recital = await recite(rig, "emoji", ("llama2", "mistral"), 1, 0)
    said, num_torn = b"", 0
    for token, following in pairwise(recital.tokens):
        said += token.bytes
        num_torn += token.member != following.member and not is_whole(said)
    assert num_torn > 3


@pytest.mark.parametrize("seed", range(3))
async def test_a_word_that_another_goes_on_with_is_tokenized_anew_and_only_that(
    rig: Rig, seed: int
) -> None:
    recital = await recite(rig, "prose", ("gpt2", "bytes"), 1, seed)
    text = member_text("gpt2")
    ids = text.canonical.encode(SAID["prose"])
    starts = [0, *accumulate(len(text.token_bytes[i]) for i in ids)]
    canonical = set(zip(starts, ids, strict=False))
    drawn, at = set(), 0
    for token in recital.tokens:
        if token.member == "gpt2":
            drawn.add((at, token.id))
        at += len(token.bytes)
    assert len(drawn - canonical) > 10  # so many rows did not stand
    num_tokens, usage = len(recital.tokens), recital.usage("gpt2")
    assert recital.num_runs > 60
    assert usage.processed_tokens < usage.prompt_tokens + 2 * num_tokens
    assert usage.processed_tokens * 15 < num_tokens * recital.num_runs  # each run from the start


# How bytes are found is the replica's: a rule changes what is made of them, not what is told.
BY_BYTES = [*((text, "bytes") for text in sorted(TEXTS)), ("emoji", "product"), ("odd", "product")]


@pytest.mark.parametrize(("text", "blend"), BY_BYTES)
async def test_by_bytes_the_text_comes_out_byte_for_byte(rig: Rig, text: str, blend: str) -> None:
    recitals = await asyncio.gather(
        *(recital(rig, blend, text, speakers, 1, {}) for speakers in PAIRS)
    )
    for recited, speakers in zip(recitals, PAIRS, strict=True):
        assert all(len(token.bytes) == 1 for token in recited.tokens)
        assert {share.member for share in recited.tokens[0].shares} == set(speakers)
        assert recited.outcome.dropped_share < 1e-6
