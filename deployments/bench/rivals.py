"""Plain transformers, as one would write it without Cuvée: one process, one request at a time.

The loops are meant to be strong: key-value caches, no gradients, logits of the last token only, and
no padding or mask for a batch of one. Text is never made of their tokens, and nothing is sent.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache
from transformers.generation.streamers import BaseStreamer

from deployments.bench.figures import Reply
from deployments.bench.workload import Job


class PlainModel:
    """A model and its tokenizer, as `from_pretrained` gives them."""

    def __init__(self, folder: Path, dtype: str) -> None:
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, padding_side="left")
        model: Any = AutoModelForCausalLM
        self._origin = folder, dtype
        self.model = model.from_pretrained(folder, dtype=getattr(torch, dtype, dtype)).eval()
        self._end_id: int = self.tokenizer.eos_token_id

    def is_from(self, folder: Path, dtype: str) -> bool:
        """Whether it is that model: two members may have the same weights."""
        return self._origin == (folder, dtype)

    def cache(self) -> Any:
        """An empty one."""
        return DynamicCache(config=self.model.config)

    @property
    def num_bytes(self) -> int:
        """Of the weights that a forward pass of one token reads; tied ones count once."""
        parameters = {p.data_ptr(): p for p in self.model.parameters()}
        total = sum(int(p.nbytes) for p in parameters.values())
        table, head = self.model.get_input_embeddings(), self.model.get_output_embeddings()
        is_tied = head is None or table.weight.data_ptr() == head.weight.data_ptr()
        return total if is_tied else total - int(table.weight.nbytes)

    def logits(self, ids: Sequence[int], cache: Any) -> Tensor:
        """[1, 1, V] after these ids, which follow what the cache holds."""
        output = self.model(
            input_ids=torch.tensor([ids]),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        found: Tensor = output.logits
        return found

    def probabilities(self, logits: Tensor) -> Tensor:
        """[B, V] of the next token, never the end: at temperature 1, as the served blends draw."""
        logits = logits[:, -1].float()
        logits[:, self._end_id] = float("-inf")
        return torch.softmax(logits, dim=-1)

    def draw(self, logits: Tensor) -> Tensor:
        """One token per row."""
        return torch.multinomial(self.probabilities(logits), 1)


@torch.inference_mode()
def decode(plain: PlainModel, jobs: Sequence[Job], num_tokens: int) -> list[Reply]:
    """A loop of our own over one model; several jobs are one static batch, padded on the left."""
    torch.manual_seed(jobs[0].seed)
    sent_s = time.perf_counter()
    is_padded = len(jobs) > 1
    batch = plain.tokenizer([j.prompt for j in jobs], return_tensors="pt", padding=is_padded)
    ids, mask, cache = batch.input_ids, batch.attention_mask, plain.cache()
    num_prompt_tokens = mask.sum(dim=1).tolist()
    arrivals_s: list[float] = []
    while len(arrivals_s) < num_tokens:
        padding = {}
        if is_padded:
            positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
            padding = {"attention_mask": mask, "position_ids": positions}
        output = plain.model(
            input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1, **padding
        )
        ids = plain.draw(output.logits)
        arrivals_s.append(time.perf_counter())
        mask = torch.cat([mask, mask.new_ones(len(jobs), 1)], dim=1)
    return [
        Reply(sent_s, tuple(arrivals_s), num_tokens, num_prompt + num_tokens - 1)
        for num_prompt in num_prompt_tokens
    ]


def generate(plain: PlainModel, job: Job, num_tokens: int) -> Reply:
    """The library's own `generate`."""
    torch.manual_seed(job.seed)
    sent_s = time.perf_counter()
    batch = plain.tokenizer([job.prompt], return_tensors="pt")
    clock = _Clock()
    plain.model.generate(
        **batch,
        streamer=clock,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        min_new_tokens=num_tokens,
        max_new_tokens=num_tokens,
        use_cache=True,
    )
    num_prompt_tokens = batch.input_ids.shape[1]
    return Reply(sent_s, tuple(clock.arrivals_s), num_tokens, num_prompt_tokens + num_tokens - 1)


@torch.inference_mode()
def mix(plains: Sequence[PlainModel], job: Job, num_tokens: int, speakers: Sequence[int]) -> Reply:
    """A token-level mixture: all models in one process, each fed what it missed when it speaks.

    The speaker of each position is the one that Cuvée draws for the same seed, so both do the same
    forward passes.
    """
    torch.manual_seed(job.seed)
    sent_s = time.perf_counter()
    ids: list[int] = plains[0].tokenizer(job.prompt).input_ids
    caches = [plain.cache() for plain in plains]
    known = [0] * len(plains)
    arrivals_s = []
    for speaker in speakers[:num_tokens]:
        plain = plains[speaker]
        logits = plain.logits(ids[known[speaker] :], caches[speaker])
        known[speaker] = len(ids)
        ids.append(int(plain.draw(logits)))
        arrivals_s.append(time.perf_counter())
    return Reply(sent_s, tuple(arrivals_s), num_tokens, sum(known))


@torch.inference_mode()
def average(
    plains: Sequence[PlainModel], job: Job, num_tokens: int, weights: Sequence[float]
) -> Reply:
    """A conventional ensemble: for each token all models run one after another, on all the tokens
    so far; their probabilities are averaged, and one token is drawn of that.
    """
    torch.manual_seed(job.seed)
    sent_s = time.perf_counter()
    ids: list[int] = plains[0].tokenizer(job.prompt).input_ids
    num_prompt, news = len(ids), ids
    caches = [plain.cache() for plain in plains]
    arrivals_s = []
    for _ in range(num_tokens):
        laws = (
            weight * plain.probabilities(plain.logits(news, cache))
            for plain, cache, weight in zip(plains, caches, weights, strict=True)
        )
        mean = reduce(torch.add, laws)
        news = [int(torch.multinomial(mean, 1))]
        arrivals_s.append(time.perf_counter())
    num_fed = len(plains) * (num_prompt + num_tokens - 1)
    return Reply(sent_s, tuple(arrivals_s), len(plains) * num_tokens, num_fed)


class _Clock(BaseStreamer):
    """Notes when `generate` gives each token; what it gives first is the prompt."""

    def __init__(self) -> None:
        self.arrivals_s: list[float] = []
        self._is_prompt_over = False

    def put(self, value: Tensor) -> None:
        if self._is_prompt_over:
            self.arrivals_s.append(time.perf_counter())
        self._is_prompt_over = True

    def end(self) -> None:
        pass
