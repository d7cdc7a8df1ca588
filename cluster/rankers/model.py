"""A ranker's model, from any checkpoint of its kind that transformers can load.

A long prompt loses its beginning, and a reply that is longer than the model can read its end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice, permutations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cluster.errors import Unsupported
from cluster.members.base import Prompt
from cluster.merging.cache import folder_of
from cluster.models.machine import device_of
from cluster.rankers.base import Measures, RankRequest, as_text
from cluster.rankers.facts import read_ranker_config
from cluster.spec import RankerSpec
from cluster.spec.ranker import PAIR_TEMPLATE
from cluster.spec.templates import render

_BATCH = 16  # inputs in one forward pass
_FALLBACK_LENGTH = 512  # of models that set no limit of their own
_LONGEST = 100_000  # what transformers says for "no limit" is more


class RankerModel:
    """Judges replies; synchronous, one call at a time."""

    def __init__(self, spec: RankerSpec) -> None:
        """Load the model; raises Unsupported with the reason if it is not of its kind."""
        from transformers import AutoTokenizer

        folder = folder_of(spec, download=True)
        self._spec = spec
        read_ranker_config(folder, spec)  # it has the clearest words for what cannot rank
        self._model = _load(folder, spec)
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self._tokenizer.truncation_side = "left"
        if self._tokenizer.pad_token_id is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        if getattr(self._model.config, "pad_token_id", None) is None:
            self._model.config.pad_token_id = self._tokenizer.pad_token_id
        limits = (
            self._tokenizer.model_max_length,
            getattr(self._model.config, "max_position_embeddings", None) or _FALLBACK_LENGTH,
        )
        self._max_tokens = min(limits) if min(limits) < _LONGEST else _FALLBACK_LENGTH

    def measure(self, requests: Sequence[RankRequest]) -> list[Measures]:
        """What is asked of each request's replies, over as few passes as there can be."""
        kinds: dict[str, Callable[[Sequence[RankRequest]], list[Measures]]] = {
            "reward": self._rewards,
            "pairwise": self._margins,
            "embedding": self._embeddings,
        }
        return kinds[self._spec.kind](requests)

    def _rewards(self, requests: Sequence[RankRequest]) -> list[Measures]:
        inputs = [self._dialogue(r.prompt, reply) for r in requests for reply in r.replies]
        found = iter(self._classify(inputs))
        return [np.array(list(islice(found, len(r.replies))), np.float32) for r in requests]

    def _margins(self, requests: Sequence[RankRequest]) -> list[Measures]:
        """Both orders of each pair, so that a model's liking for the first place cancels."""
        template = self._spec.template or PAIR_TEMPLATE
        inputs = [
            (render(template, prompt=as_text(r.prompt), first=first, second=second), None)
            for r in requests
            for first, second in permutations(r.replies, 2)
        ]
        found = iter(self._classify(inputs))
        margins = []
        for request in requests:
            size = len(request.replies)
            raw = np.zeros((size, size), np.float32)
            for i, j in permutations(range(size), 2):
                raw[i, j] = next(found)
            margins.append(((raw - raw.T) / 2).astype(np.float32))
        return margins

    def _embeddings(self, requests: Sequence[RankRequest]) -> list[Measures]:
        """The mean of the last layer's states over a text's tokens, scaled to length 1."""
        found = iter(self._run([(t, None) for r in requests for t in r.replies], _mean_state))
        return [np.stack(list(islice(found, len(r.replies)))) for r in requests]

    def _dialogue(self, prompt: Prompt, reply: str) -> tuple[str, str | None]:
        """As the tokenizer's chat template has it; else the prompt and the reply as a pair."""
        if not self._tokenizer.chat_template:
            return as_text(prompt), reply
        messages = prompt.messages or ()
        said = [{"role": m.role, "content": m.content} for m in messages]
        said = said or [{"role": "user", "content": as_text(prompt)}]
        said.append({"role": "assistant", "content": reply})
        return self._tokenizer.apply_chat_template(said, tokenize=False), None

    def _classify(self, inputs: Sequence[tuple[str, str | None]]) -> list[float]:
        """One number each: the only label's logit, or the log-odds of the label that counts.

        Of two labels the second one says yes; of a pair, the first one says that the first wins.
        """
        sign = -1.0 if self._spec.kind == "pairwise" else 1.0

        def score(output: Any, inputs: Any) -> Tensor:
            logits: Tensor = output.logits.float()
            if logits.shape[1] == 1:
                return logits[:, 0]
            return sign * (logits[:, 1] - logits[:, 0])

        return [float(value) for value in self._run(inputs, score)]

    @torch.inference_mode()
    def _run(
        self, inputs: Sequence[tuple[str, str | None]], read: Callable[[Any, Any], Tensor]
    ) -> Iterable[Any]:
        for begin in range(0, len(inputs), _BATCH):
            batch = inputs[begin : begin + _BATCH]
            encoded = self._encode(batch).to(self._model.device)
            yield from read(self._model(**encoded), encoded).cpu().numpy()

    def _encode(self, batch: Sequence[tuple[str, str | None]]) -> Any:
        firsts, seconds = [first for first, _ in batch], [second for _, second in batch]
        has_pairs = seconds[0] is not None
        templated = bool(self._tokenizer.chat_template) and self._spec.kind == "reward"
        return self._tokenizer(
            firsts,
            seconds if has_pairs else None,
            padding=True,
            truncation="longest_first",
            max_length=self._max_tokens,
            add_special_tokens=not templated,
            return_tensors="pt",
        )


def _mean_state(output: Any, inputs: Any) -> Tensor:
    states: Tensor = output.last_hidden_state.float()
    mask = inputs["attention_mask"][:, :, None].float()
    mean = (states * mask).sum(dim=1) / mask.sum(dim=1)
    return torch.nn.functional.normalize(mean, dim=-1)


def _load(folder: Path, spec: RankerSpec) -> Any:
    """The model, refused where transformers would make up weights that the checkpoint lacks."""
    from transformers import AutoModel, AutoModelForSequenceClassification

    is_embedding = spec.kind == "embedding"
    auto = AutoModel if is_embedding else AutoModelForSequenceClassification
    try:
        model, info = auto.from_pretrained(
            folder,
            dtype="auto" if spec.dtype == "auto" else getattr(torch, spec.dtype),
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except Exception as error:  # each architecture fails in its own way
        message = f"{folder} cannot be loaded as a {spec.kind} ranker: {error}"
        raise Unsupported("RANKER_UNSUPPORTED", message, field="model") from error
    missing = [key for key in info["missing_keys"] if not (is_embedding and "pooler" in key)]
    if missing:
        message = (
            f"{folder} has no weights for {', '.join(sorted(missing)[:3])}; expected a checkpoint "
            f"of {'an encoder' if is_embedding else 'a sequence classifier'}"
        )
        raise Unsupported("RANKER_UNSUPPORTED", message, field="model")
    return model.eval().to(device_of(spec))
