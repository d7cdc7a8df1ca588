"""The contract between router and ranker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cluster.members.base import Prompt

Measures = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class RankRequest:
    """Replies to one prompt."""

    prompt: Prompt
    replies: tuple[str, ...]


class Ranker(Protocol):
    """A ranker as the router sees it, on as many replicas as there are."""

    async def ready(self) -> None:
        """Return once a replica has its model; raises Unavailable."""

    async def measure(self, request: RankRequest) -> Measures:
        """What the model says of n replies; raises Unavailable.

        Kind reward: [n], higher is better. Kind pairwise: [n, n], by how much the first is better
        than the second, as log-odds, 0 on the diagonal. Kind embedding: [n, d] of length 1; the
        prompt plays no part.
        """


def last_message(prompt: Prompt) -> str:
    """What the reply answers, without what came before it."""
    return prompt.messages[-1].content if prompt.messages else prompt.text or ""


def as_text(prompt: Prompt) -> str:
    """A prompt in plain words, for models without a chat template."""
    if prompt.messages is None:
        return prompt.text or ""
    return "\n\n".join(f"{m.role}: {m.content}" for m in prompt.messages)
