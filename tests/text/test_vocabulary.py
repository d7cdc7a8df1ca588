import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from cluster.errors import Unsupported
from cluster.text.vocabulary import Vocabulary
from tests.text.text_samples import texts
from tests.text.tokenizer_factory import MAKES, NOT_FAITHFUL, make, make_canonical

FAITHFUL = sorted(set(MAKES) - NOT_FAITHFUL)


@pytest.mark.parametrize("name", FAITHFUL)
def test_bytes_of_the_tokens_are_the_bytes_of_the_text(name: str) -> None:
    vocabulary, canonical = make(name)[1], make_canonical(name)

    @given(texts)
    def check(text: str) -> None:
        spelled = b"".join(vocabulary.token_bytes[i] for i in canonical.encode(text))
        assert spelled == text.encode()

    check()


@pytest.mark.parametrize("name", sorted(MAKES))
def test_a_tokenizer_that_changes_text_is_found_out(name: str) -> None:
    assert make(name)[1].byte_faithful == (name not in NOT_FAITHFUL)


@pytest.mark.parametrize("name", sorted(MAKES))
def test_control_tokens_are_special_and_no_text(name: str) -> None:
    tokenizer, vocabulary = make(name)
    for text in ("<s>", "</s>", "<|im_end|>", "<unk>"):
        i = tokenizer.convert_tokens_to_ids(text)
        assert i in vocabulary.special
        assert vocabulary.token_bytes[i] == b""
        assert vocabulary.special_strings[text] == i


def reloaded(tokenizer: Any, **changes: Any) -> Vocabulary:
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    spec.update(changes)
    backend = Tokenizer.from_str(json.dumps(spec))
    return Vocabulary.load(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>"))


def test_fingerprints_compare_content_not_files() -> None:
    tokenizer, vocabulary = make("gpt2")
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    merges = spec["model"]["merges"]
    fewer = {**spec["model"], "merges": merges[:-1]}
    assert reloaded(tokenizer, model=fewer).fingerprint == vocabulary.fingerprint
    ids = spec["model"]["vocab"]
    a, b = "".join(merges[-1]), "".join(merges[-2])
    swapped = {**spec["model"], "vocab": {**ids, a: ids[b], b: ids[a]}}
    assert reloaded(tokenizer, model=swapped).fingerprint != vocabulary.fingerprint
    assert replace(vocabulary, special=frozenset()).fingerprint != vocabulary.fingerprint


def test_vocabularies_written_in_two_ways_are_one_by_content() -> None:
    spelled = {}
    for name, decoder, space in [
        ("a", decoders.ByteLevel(), "Ġ"),
        ("b", decoders.Metaspace(), "▁"),
    ]:
        backend = Tokenizer(models.BPE({"x": 0, f"{space}x": 1, "y": 2}, []))
        backend.decoder = decoder
        spelled[name] = Vocabulary.load(PreTrainedTokenizerFast(tokenizer_object=backend))
    assert spelled["a"].token_bytes == (b"x", b" x", b"y")
    assert spelled["a"].fingerprint == spelled["b"].fingerprint


def test_ids_without_a_token_are_special() -> None:
    backend = Tokenizer(models.BPE({"x": 0, "y": 3}, []))
    backend.decoder = decoders.ByteLevel()
    vocabulary = Vocabulary.load(PreTrainedTokenizerFast(tokenizer_object=backend))
    assert vocabulary.size == 4
    assert vocabulary.special == {1, 2}


def test_ordinary_added_tokens_are_text() -> None:
    tokenizer = MAKES["llama2"]()
    tokenizer.add_tokens(["<think>"])
    vocabulary = Vocabulary.load(tokenizer)
    i = tokenizer.convert_tokens_to_ids("<think>")
    assert vocabulary.token_bytes[i] == b"<think>"
    assert i not in vocabulary.special


@pytest.mark.parametrize("decoder", [decoders.WordPiece(), decoders.BPEDecoder(), None])
def test_other_decoders_are_refused_by_name(decoder: Any) -> None:
    backend = Tokenizer(models.BPE({"x": 0}, []))
    if decoder:
        backend.decoder = decoder
    with pytest.raises(Unsupported, match=r"WordPiece|BPEDecoder|nothing") as caught:
        Vocabulary.load(PreTrainedTokenizerFast(tokenizer_object=backend))
    assert caught.value.reason == "TOKENIZER_NOT_SUPPORTED"


def test_tokenizers_in_python_are_refused() -> None:
    with pytest.raises(Unsupported, match="object") as caught:
        Vocabulary.load(object())
    assert caught.value.reason == "TOKENIZER_NOT_FAST"


def test_end_ids_gather_what_configs_and_the_tokenizer_say() -> None:
    vocabulary = make("gpt2")[1]
    (eos,) = vocabulary.eos_ids
    assert vocabulary.end_ids() == (eos,)
    assert vocabulary.end_ids(None, 4, [4, 0], eos) == tuple(sorted({0, 4, eos}))
    assert vocabulary.end_ids(10**9, -1) == (eos,)  # rows the tokenizer does not know
