"""The embedded model family: ordinary folders, one tokenizer, styles that their text confirms."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cluster.models.corpus import STYLES, read_paragraphs
from cluster.models.held_out import EMBEDDED, NAMES, bits

FAMILY = tuple(name for name in NAMES if name != "tiny-bytes")
SLICE_CHARS = 8_000
HARD_TEXTS = (
    "",
    " leading and trailing ",
    "two  spaces\tand\ttabs\r\n\n\nand lines",
    "don 't , . ? ! clean - up",
    "naïve Cuvée, e\u0301 is not é, ﬁ is not fi",
    "日本語のテキストと한국어와中文",
    "👩‍👩‍👧‍👦🏳️‍🌈 and 𝔘𝔫𝔦𝔠𝔬𝔡𝔢",
    "\u200b\u00a0\ufeff\x00\x7f\U0010ffff",
    "العربية עברית",
)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Models this small lose more to hand-overs between threads than they gain."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@cache
def load_tokenizer(name: str) -> Any:
    return AutoTokenizer.from_pretrained(EMBEDDED / name)


@cache
def load_model(name: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(EMBEDDED / name, dtype=torch.float32).eval()


@cache
def bits_per_byte(name: str, style: str) -> float:
    paragraphs = []
    for paragraph in read_paragraphs(EMBEDDED / "held_out" / f"{style}.txt"):
        paragraphs.append(paragraph)
        if sum(map(len, paragraphs)) > SLICE_CHARS:
            break
    return bits(load_model(name), load_tokenizer(name), paragraphs).per_byte


@pytest.mark.parametrize("name", NAMES)
def test_folder_loads_without_network(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def refuse(_socket: object, address: object) -> None:
        asked.append(address)
        raise OSError("this test has no network")

    monkeypatch.setattr("socket.socket.connect", refuse)
    AutoTokenizer.from_pretrained(EMBEDDED / name)
    AutoModelForCausalLM.from_pretrained(EMBEDDED / name)
    assert not asked


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_bfloat16_and_finite(name: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(EMBEDDED / name)
    assert model.dtype == torch.bfloat16
    for parameter_name, parameter in model.named_parameters():
        assert torch.isfinite(parameter).all(), parameter_name


@pytest.mark.parametrize("name", NAMES)
def test_special_tokens_agree_between_model_and_tokenizer(name: str) -> None:
    tokenizer, model = load_tokenizer(name), load_model(name)
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|end|>", "<|pad|>")
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id
    assert tokenizer.encode("a<|end|>")[-1] == tokenizer.eos_token_id
    assert len(tokenizer) == model.config.vocab_size
    assert model.config.max_position_embeddings == 1024


def test_family_shares_one_tokenizer_and_one_shape() -> None:
    assert len({(EMBEDDED / name / "tokenizer.json").read_bytes() for name in FAMILY}) == 1
    shapes = [
        {key: tuple(value.shape) for key, value in load_model(name).state_dict().items()}
        for name in FAMILY
    ]
    assert all(shape == shapes[0] for shape in shapes)
    assert len(load_tokenizer("tiny-base")) == 2048


def test_outsider_differs_in_tokenizer_and_architecture() -> None:
    assert len(load_tokenizer("tiny-bytes").encode("naïve")) == len("naïve".encode())
    base, outsider = load_model("tiny-base").config, load_model("tiny-bytes").config
    assert base.model_type != outsider.model_type
    assert outsider.num_key_value_heads < outsider.num_attention_heads


@pytest.mark.parametrize("text", HARD_TEXTS)
@pytest.mark.parametrize("name", ["tiny-base", "tiny-bytes"])
def test_tokenizer_gives_back_every_byte(name: str, text: str) -> None:
    tokenizer = load_tokenizer(name)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


@pytest.mark.parametrize("name", NAMES)
def test_chat_template_ends_each_message(name: str) -> None:
    messages = [
        {"role": "system", "content": "Be brief. "},
        {"role": "user", "content": "<b>Hi</b> & bye"},
    ]
    rendered = load_tokenizer(name).apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    assert rendered == "Be brief. <|end|><b>Hi</b> & bye<|end|>"


def test_weights_stay_small() -> None:
    sizes_bytes = [path.stat().st_size for path in EMBEDDED.glob("*/model.safetensors")]
    assert len(sizes_bytes) == len(NAMES)
    assert sum(sizes_bytes) <= 22_000_000


@pytest.mark.parametrize("style", STYLES)
def test_style_model_predicts_its_own_style_best(style: str) -> None:
    own = bits_per_byte(f"tiny-{style}", style)
    others = {name: bits_per_byte(name, style) for name in FAMILY if name != f"tiny-{style}"}
    assert all(own < other for other in others.values()), (own, others)


@pytest.mark.parametrize("name", NAMES)
def test_most_replies_end_by_themselves(name: str) -> None:
    tokenizer, model = load_tokenizer(name), load_model(name)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is happiness?"}], tokenize=False
    )
    prompts = tokenizer([prompt] * 8, return_tensors="pt")
    torch.manual_seed(7)
    max_new_tokens = 600 if name == "tiny-bytes" else 250
    replies = model.generate(**prompts, do_sample=True, max_new_tokens=max_new_tokens)
    new = replies[:, prompts["input_ids"].shape[1] :]
    num_ended = int((new == tokenizer.eos_token_id).any(dim=1).sum())
    assert num_ended >= 5
