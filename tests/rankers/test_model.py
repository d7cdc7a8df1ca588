"""Rankers against plain transformers, one input at a time and without padding."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from cluster.errors import Unsupported
from cluster.members.base import Prompt
from cluster.rankers.base import RankRequest
from cluster.rankers.model import RankerModel
from cluster.spec import RankerSpec
from cluster.text.chat import Message
from tests.rankers.checkpoints import make_ranker

REPLIES = ("Yes.", "It is a truth universally acknowledged", "And God said, let there be light")
TEXT = Prompt(text="Who are you?")
CHAT = Prompt(messages=(Message("system", "Be kind."), Message("user", "Who are you?")))


def spec(folder: Path, kind: str, **more: str) -> RankerSpec:
    return RankerSpec.model_validate(
        {"model": str(folder), "kind": kind, "dtype": "float32", **more}
    )


def logits(folder: Path, *inputs: tuple[str, ...], special: bool = True) -> np.ndarray:
    model = AutoModelForSequenceClassification.from_pretrained(folder).double().eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    rows = []
    with torch.inference_mode():
        for texts in inputs:
            ids = tokenizer(*texts, return_tensors="pt", add_special_tokens=special)
            rows.append(model(**ids).logits[0].numpy())
    return np.array(rows)


@pytest.mark.parametrize("num_labels", [1, 2])
def test_rewards_of_pairs(tmp_path: Path, num_labels: int) -> None:
    folder = make_ranker(tmp_path / "r", num_labels=num_labels)
    found = RankerModel(spec(folder, "reward")).measure([RankRequest(TEXT, REPLIES)])
    raw = logits(folder, *(("Who are you?", reply) for reply in REPLIES))
    expected = raw[:, 0] if num_labels == 1 else raw[:, 1] - raw[:, 0]
    np.testing.assert_allclose(found[0], expected, atol=1e-5)


def test_a_decoder_reads_its_chat_template(tmp_path: Path) -> None:
    """As reward models of the Llama kind do; the last token that is no padding decides."""
    folder = make_ranker(tmp_path / "r", architecture="llama", chat=True)
    found = RankerModel(spec(folder, "reward")).measure([RankRequest(CHAT, REPLIES)])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    said = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Who are you?"}]
    texts = [
        tokenizer.apply_chat_template(
            [*said, {"role": "assistant", "content": reply}], tokenize=False
        )
        for reply in REPLIES
    ]
    expected = logits(folder, *((text,) for text in texts), special=False)[:, 0]
    np.testing.assert_allclose(found[0], expected, atol=1e-5)


def test_pairs_in_both_orders(tmp_path: Path) -> None:
    folder = make_ranker(tmp_path / "r")
    template = "{{ prompt }} | {{ first }} | {{ second }}"
    ranker = RankerModel(spec(folder, "pairwise", template=template))
    (margins,) = ranker.measure([RankRequest(TEXT, REPLIES)])
    for i, first in enumerate(REPLIES):
        for j, second in enumerate(REPLIES):
            if i == j:
                assert margins[i, j] == 0
                continue
            both = logits(
                folder,
                (f"Who are you? | {first} | {second}",),
                (f"Who are you? | {second} | {first}",),
            )[:, 0]
            assert margins[i, j] == pytest.approx((both[0] - both[1]) / 2, abs=1e-5)


def test_embeddings_are_means_of_length_one(tmp_path: Path) -> None:
    folder = make_ranker(tmp_path / "e", num_labels=None)
    found = RankerModel(spec(folder, "embedding")).measure([RankRequest(TEXT, REPLIES)])
    model = AutoModel.from_pretrained(folder).double().eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        for row, reply in zip(found[0], REPLIES, strict=True):
            state = model(**tokenizer(reply, return_tensors="pt")).last_hidden_state[0]
            mean = state.mean(dim=0).numpy()
            np.testing.assert_allclose(row, mean / np.linalg.norm(mean), atol=1e-5)


def test_requests_share_passes_and_keep_apart(tmp_path: Path) -> None:
    ranker = RankerModel(spec(make_ranker(tmp_path / "r"), "reward"))
    requests = [RankRequest(TEXT, REPLIES[:n]) for n in (1, 3, 2)]
    together = ranker.measure(requests)
    assert [len(found) for found in together] == [1, 3, 2]
    for request, found in zip(requests, together, strict=True):
        np.testing.assert_allclose(ranker.measure([request])[0], found, atol=1e-5)


def test_long_prompts_lose_their_beginning(tmp_path: Path) -> None:
    ranker = RankerModel(spec(make_ranker(tmp_path / "r"), "reward"))
    long = Prompt(text="something else entirely " * 200 + "Who are you?")
    (found,) = ranker.measure([RankRequest(long, REPLIES)])
    assert len(set(found.round(4))) == len(REPLIES), "the replies are still read"


@pytest.mark.parametrize(
    ("num_labels", "kind", "words"),
    [
        (None, "reward", "holds a BertModel; expected a sequence classifier"),
        (None, "pairwise", "expected a sequence classifier"),
        (3, "reward", "3 labels"),
    ],
)
def test_what_cannot_rank_is_refused(
    tmp_path: Path, num_labels: int | None, kind: str, words: str
) -> None:
    """An encoder without a head would rank by weights made up on the spot."""
    folder = make_ranker(tmp_path / "r", num_labels=num_labels)
    with pytest.raises(Unsupported, match=words) as caught:
        RankerModel(spec(folder, kind))
    assert caught.value.reason == "RANKER_UNSUPPORTED"


def test_a_head_without_weights_is_refused(tmp_path: Path) -> None:
    """Its configuration promises a head that its file lacks; transformers would make one up."""
    folder = make_ranker(tmp_path / "r", num_labels=None)
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = ["BertForSequenceClassification"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(Unsupported, match="no weights for classifier"):
        RankerModel(spec(folder, "reward"))


def test_a_broken_checkpoint_is_refused(tmp_path: Path) -> None:
    folder = make_ranker(tmp_path / "r")
    (folder / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(Unsupported, match="cannot be loaded as a reward ranker"):
        RankerModel(spec(folder, "reward"))
