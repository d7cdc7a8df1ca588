"""From examples to what a gate sees and what it should have decided, by plain transformers.

A row is one decision: the features there, and how likely each member finds what follows. Where an
example names the member that should answer, the others find it impossible.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cluster.blending.base import Span
from cluster.errors import Unsupported
from cluster.gates.examples import Example
from cluster.members.base import Prompt
from cluster.merging.cache import folder_of
from cluster.models.machine import device_of
from cluster.rankers.base import RankRequest, last_message
from cluster.rankers.model import RankerModel
from cluster.spec import ClusterSpec, LearnedGate, MemberSpec, RouteSpec
from cluster.text.borders import Border, starts_span
from cluster.text.member import MemberText

_BORDERS = {"word": Border.WORD, "sentence": Border.SENTENCE}


@dataclass(frozen=True, slots=True)
class Row:
    """One decision."""

    features: NDArray[np.float32]
    logliks: NDArray[np.float64]  # by member


class Reader:
    """One member's model, read a sequence at a time."""

    def __init__(self, spec: MemberSpec) -> None:
        from transformers import AutoModelForCausalLM

        folder = folder_of(spec, download=True)
        dtype = "auto" if spec.dtype == "auto" else getattr(torch, spec.dtype)
        self.text = MemberText.load(folder)
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        self._model = model.eval().to(device_of(spec))
        self._states = torch.empty(0)
        self._model.get_output_embeddings().register_forward_pre_hook(self._keep)

    def _keep(self, head: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self._states = inputs[0][0]

    def ids(self, prompt: Prompt) -> list[int]:
        """The prompt in the member's tokens, its template applied."""
        return self.text.render(prompt.text, prompt.messages)

    def reply_ids(self, reply: str) -> list[int]:
        """A reply in the member's tokens."""
        return self.text.canonical.encode(reply)

    @torch.inference_mode()
    def read(self, ids: list[int]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Hidden states [T, d], and each token's log-probability [T - 1] after the first."""
        given = torch.tensor([ids], device=self._model.device)
        logits = self._model(given).logits[0, :-1].float().log_softmax(dim=-1)
        logprobs = logits.gather(1, given[0, 1:, None])[:, 0].double()
        return self._states.float().cpu().numpy(), logprobs.cpu().numpy()


class Features:
    """Makes a blend's rows; loads every model that it needs."""

    def __init__(self, spec: ClusterSpec, blend: RouteSpec) -> None:
        gate = blend.gate
        assert isinstance(gate, LearnedGate), "other gates learn nothing"
        self._names = list(blend.members)
        self._readers = {name: Reader(spec.members[name]) for name in self._names}
        self._reader = self._readers[gate.reader] if gate.reader else None
        self._ranker = RankerModel(spec.rankers[gate.ranker]) if gate.ranker else None
        prints = {reader.text.vocabulary.fingerprint for reader in self._readers.values()}
        self._span = blend.span_for(one_vocabulary=len(prints) == 1)
        if self._reader is not None and self._span != "response" and len(prints) > 1:
            raise Unsupported(
                "VOCABULARY_MISMATCH",
                "members of several vocabularies do not agree on what a token is; expected one "
                "vocabulary, span: response, or a ranker to read prompts",
                field="span",
            )

    def rows(self, example: Example) -> Iterator[Row]:
        """The decisions that an example teaches."""
        if self._reader is None or self._span == "response" or example.reply is None:
            yield Row(self._of_prompt(example.prompt), self._logliks(example))
            return
        prompt, reply = self._reader.ids(example.prompt), self._reader.reply_ids(example.reply)
        states, _ = self._reader.read(prompt + reply)
        logprobs = np.stack(
            [self._readers[n].read(prompt + reply)[1][len(prompt) - 1 :] for n in self._names]
        )
        begins = [*_begins(reply, self._reader.text.token_bytes, self._span), len(reply)]
        for begin, end in pairwise(begins):
            logliks = logprobs[:, begin:end].sum(axis=1)
            yield Row(states[len(prompt) + begin - 1], self._labelled(example, logliks))

    def _of_prompt(self, prompt: Prompt) -> NDArray[np.float32]:
        if self._ranker is not None:
            request = RankRequest(Prompt(text=""), (last_message(prompt),))
            return np.asarray(self._ranker.measure([request])[0][0], np.float32)
        assert self._reader is not None, "a gate reads a member or a ranker"
        return np.asarray(self._reader.read(self._reader.ids(prompt))[0][-1], np.float32)

    def _logliks(self, example: Example) -> NDArray[np.float64]:
        """How likely each member finds the whole reply, in its own tokens."""
        found = np.zeros(len(self._names))
        if example.member is None and example.reply is not None:
            for place, name in enumerate(self._names):
                reader = self._readers[name]
                prompt = reader.ids(example.prompt)
                _, logprobs = reader.read(prompt + reader.reply_ids(example.reply))
                found[place] = logprobs[len(prompt) - 1 :].sum()
        return self._labelled(example, found)

    def _labelled(self, example: Example, logliks: NDArray[np.float64]) -> NDArray[np.float64]:
        if example.member is None:
            return logliks
        return np.where([name == example.member for name in self._names], 0.0, -np.inf)


def _begins(reply: Sequence[int], token_bytes: Sequence[bytes], span: Span) -> list[int]:
    """Where the reply's spans begin, by token."""
    if not isinstance(span, str) or span == "token":
        return list(range(0, len(reply), 1 if span == "token" else int(span)))
    found, before = [0], ""
    for place, token in enumerate(reply):
        text = token_bytes[token].decode("utf-8", "replace")
        if place and starts_span(_BORDERS[span], before, text):
            found.append(place)
        before += text
    return found
