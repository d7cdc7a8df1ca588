"""The embedded models' tokenizers: byte-level, so any text comes back byte for byte.

No normalizer, no added prefix space, no clean-up on decoding. `<|end|>` ends a turn and a
paragraph; `<|pad|>` is a token of its own, so that padding never reads as an ending.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

END, PAD = "<|end|>", "<|pad|>"
END_ID, PAD_ID = 0, 1
CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}" + END + "{% endfor %}"


def bpe_tokenizer(texts: Iterable[str], num_entries: int, context: int) -> PreTrainedTokenizerFast:
    """Learn byte pairs from the texts; the result depends on nothing else."""
    backend = _backend(models.BPE(), splits_words=True)
    trainer = trainers.BpeTrainer(
        vocab_size=num_entries,
        special_tokens=[END, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return _wrapped(backend, context)


def byte_tokenizer(context: int) -> PreTrainedTokenizerFast:
    """One token a byte: a pair encoding that has learned no pair."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([END, PAD, *alphabet])}
    return _wrapped(_backend(models.BPE(vocab=vocabulary, merges=[]), splits_words=False), context)


def _backend(model: models.BPE, splits_words: bool) -> Tokenizer:
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=splits_words)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True) for token in (END, PAD)])
    return backend


def _wrapped(backend: Tokenizer, context: int) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend,
        bos_token=END,
        eos_token=END,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
        model_max_length=context,
        chat_template=CHAT_TEMPLATE,
    )
