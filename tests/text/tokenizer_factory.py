"""Small tokenizers of every make that serves, trained on a few sentences."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from cluster.text.retokenize import Canonical
from cluster.text.vocabulary import Vocabulary

SENTENCES = [
    "The quick brown fox jumps over the lazy dog, and the dog doesn't mind at all.",
    "In the end, one of the best things is to be here; it's what we'd like to see.",
    "def add(x, y):\n    return x + y  # the sum\n\nif __name__ == '__main__':\n\tprint(add(1, 2))",
    "Ünïcödé façade naïve, Straße; Привет мир, как дела? Καλημέρα κόσμε",
    "你好，世界。我们今天去公园！日本語、テストです。ひらがなとカタカナ。 한국어 문장 입니다",
    "<b>bold</b> [INST] user assistant system end start of turn | im _ id",
] * 4
CONTROLS = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "[INST]", "[/INST]"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _wrap(tokenizer: Tokenizer, *, bos: bool, template: str | None = None) -> Any:
    if bos:
        tokenizer.post_processor = TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        chat_template=template,
    )


def _byte_level(normalizer: Any, pre_tokenizer: Any, *, ignore_merges: bool = False) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=CONTROLS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer


def _sentencepiece(kind: str, normalizer: Any, pre_tokenizer: Any, *, fallback: bool) -> Tokenizer:
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    extra = [*CONTROLS, *BYTES] if fallback else CONTROLS
    options = {"special_tokens": extra, "show_progress": False, "vocab_size": 700}
    if kind == "bpe":
        # words are cut for the training alone, as sentencepiece does, so that no token spans two
        tokenizer = Tokenizer(models.BPE(byte_fallback=fallback, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer: Any = trainers.BpeTrainer(**options)
    else:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(unk_token="<unk>", **options)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.Sequence(steps if fallback else [steps[0], steps[2]])
    spec = json.loads(tokenizer.to_str())
    spec["added_tokens"] = [t for t in spec["added_tokens"] if t["content"] in CONTROLS]
    spec["model"]["byte_fallback"] = fallback
    spec["pre_tokenizer"] = None
    tokenizer = Tokenizer.from_str(json.dumps(spec))
    if pre_tokenizer:
        tokenizer.pre_tokenizer = pre_tokenizer
    return tokenizer


def _gpt2() -> Any:
    return _wrap(_byte_level(None, pre_tokenizers.ByteLevel(add_prefix_space=False)), bos=False)


def _prefix_space() -> Any:
    return _wrap(_byte_level(None, pre_tokenizers.ByteLevel(add_prefix_space=True)), bos=True)


def _smollm() -> Any:
    steps = [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    return _wrap(_byte_level(None, pre_tokenizers.Sequence(steps)), bos=False)


def _llama3(normalizer: Any = None) -> Any:
    steps = [
        pre_tokenizers.Split(Regex(LLAMA_3), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    made = _byte_level(normalizer, pre_tokenizers.Sequence(steps), ignore_merges=True)
    return _wrap(made, bos=True)


def _qwen() -> Any:
    return _llama3(normalizers.NFC())


def _llama2() -> Any:
    steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    return _wrap(_sentencepiece("bpe", normalizers.Sequence(steps), None, fallback=True), bos=True)


def _mistral() -> Any:
    metaspace = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return _wrap(_sentencepiece("bpe", None, metaspace, fallback=True), bos=True)


def _gemma() -> Any:
    cut = pre_tokenizers.Split(" ", "merged_with_previous")
    normalizer = normalizers.Replace(" ", "▁")
    return _wrap(_sentencepiece("bpe", normalizer, cut, fallback=True), bos=True)


def _unigram() -> Any:
    metaspace = pre_tokenizers.Metaspace(prepend_scheme="always")
    return _wrap(_sentencepiece("unigram", None, metaspace, fallback=True), bos=True)


def _unigram_whole() -> Any:
    metaspace = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    return _wrap(_sentencepiece("unigram", None, metaspace, fallback=True), bos=False)


def _unigram_without_bytes() -> Any:
    metaspace = pre_tokenizers.Metaspace(prepend_scheme="first")
    return _wrap(_sentencepiece("unigram", None, metaspace, fallback=False), bos=False)


def _lowercase() -> Any:
    return _wrap(
        _byte_level(normalizers.Lowercase(), pre_tokenizers.ByteLevel(add_prefix_space=False)),
        bos=False,
    )


def _superwords() -> Any:
    """Tokens may span words, so no boundary is stable."""
    made = _byte_level(None, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    return _wrap(made, bos=False)


MAKES: dict[str, Callable[[], Any]] = {
    "gpt2": _gpt2,
    "prefix_space": _prefix_space,
    "smollm": _smollm,
    "llama3": _llama3,
    "qwen": _qwen,
    "llama2": _llama2,
    "mistral": _mistral,
    "gemma": _gemma,
    "unigram": _unigram,
    "unigram_whole": _unigram_whole,
    "unigram_without_bytes": _unigram_without_bytes,
    "lowercase": _lowercase,
    "superwords": _superwords,
}
NOT_FAITHFUL = {"qwen", "unigram_without_bytes", "lowercase"}
NOT_INCREMENTAL = {"unigram_whole", "superwords"}


@cache
def make(name: str) -> tuple[Any, Vocabulary]:
    """The tokenizer of that make, and its vocabulary."""
    tokenizer = MAKES[name]()
    return tokenizer, Vocabulary.load(tokenizer)


@cache
def make_canonical(name: str) -> Canonical:
    """The canonical tokenization of that make."""
    return Canonical(*make(name))
