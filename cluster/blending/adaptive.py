"""Weights that follow the transcript: Bayesian model averaging over the members.

λᵢ ∝ priorᵢ · (Π pᵢ(token | all before))^strength over the last `window` tokens that every member
has read, then lifted so that nobody has less than `floor`. The tokens are the reply's, the prompt's
(all but the first, which follows nothing), or both as one text. The likelihoods come from passes
that happen anyway: a member scores the prompt and what others said as it reads them, and what it
drew as it draws. They are the models' own, before temperature and truncation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Literal

import numpy as np

from cluster.blending.base import Ask, Combined, Run
from cluster.blending.combined import Mean
from cluster.blending.mixture import Mixture
from cluster.blending.warping import Warp, warped
from cluster.distribution import Distribution

_LEAST_LOGPROB = -50.0  # one impossible token must not decide for ever


@dataclass(frozen=True, slots=True)
class Adaptation:
    """How weights follow the transcript."""

    strength: float = 1.0  # 0: not at all; 1: Bayes' rule
    window: int = 0  # tokens; 0: all
    floor: float = 0.0  # of each member's share
    evidence: Literal["reply", "prompt", "both"] = "reply"  # what is looked at


class Evidence:
    """What each member thinks of the prompt's tokens, of those said so far, or of both."""

    def __init__(self, prior: Sequence[float], adaptation: Adaptation) -> None:
        self._prior = np.asarray(prior, dtype=np.float64)
        self._adaptation = adaptation
        self._sums: list[list[float]] = [[0.0] for _ in prior]  # by member, over its first n tokens
        self._num_prompt = 0  # how many of them are the prompt's
        is_choice = int((self._prior > 0).sum()) > 1
        self.reads_prompt = is_choice and adaptation.evidence != "reply"
        self.follows_reply = adaptation.evidence != "prompt"

    def read_prompt(self, logprobs: Sequence[Sequence[float]]) -> None:
        """What members with a positive prior, in order, think of the prompt; before any note."""
        for member, known in zip(np.flatnonzero(self._prior > 0), logprobs, strict=True):
            self._add(int(member), 0, known)
        self._num_prompt = len(logprobs[0])

    def note(self, member: int, position: int, logprobs: Sequence[float]) -> None:
        """A member's log-probabilities of the reply from `position` on; told again, they stand."""
        if self.follows_reply:
            self._add(member, self._num_prompt + position, logprobs)

    def _add(self, member: int, begin: int, logprobs: Sequence[float]) -> None:
        sums = self._sums[member]
        assert begin < len(sums), "a gap in what a member read"
        bounded = (max(value, _LEAST_LOGPROB) for value in logprobs)
        sums[begin:] = accumulate(bounded, initial=sums[begin])

    def leave_out(self, member: int) -> None:
        """The member is gone: what it thought counts no more."""
        self._prior[member] = 0.0

    def remove(self, member: int) -> None:
        """The same, and those after it move up."""
        self._prior = np.delete(self._prior, member)
        del self._sums[member]

    @property
    def num_members(self) -> int:
        """How many there are."""
        return len(self._sums)

    @property
    def num_tokens(self) -> int:
        """How many of the reply's tokens every member that speaks has read, and this follows."""
        read = zip(self._sums, self._prior, strict=True)
        return min(len(sums) for sums, prior in read if prior > 0) - 1 - self._num_prompt

    def weights(self) -> list[float]:
        """The members' shares now, summing to 1; a member with prior 0 has none."""
        adaptation, end = self._adaptation, self._num_prompt + self.num_tokens
        begin = max(0, end - adaptation.window) if adaptation.window else 0
        alive = self._prior > 0
        pairs = zip(self._sums, alive, strict=True)
        evidence = np.array([sums[end] - sums[begin] if lives else 0.0 for sums, lives in pairs])
        scores = np.log(self._prior, where=alive, out=np.full_like(self._prior, -np.inf))
        scores += adaptation.strength * evidence
        shares = np.exp(scores - scores[alive].max())
        shares /= shares.sum()
        floored = adaptation.floor + (1 - adaptation.floor * alive.sum()) * shares
        return [float(share) for share in np.where(alive, floored, 0.0)]


@dataclass(frozen=True)
class AdaptiveMixture:
    """`mixture` with weights that follow the transcript.

    A run is planned with the weights of its first token. They stay so until it ends: what all have
    read grows only when another member catches up.
    """

    mixture: Mixture  # its weights are the prior
    evidence: Evidence = field(repr=False)

    @property
    def speakers(self) -> tuple[int, ...]:
        """Members with a positive prior: what they say or read decides who speaks."""
        return tuple(i for i, weight in enumerate(self.mixture.weights) if weight > 0)

    def now(self) -> Mixture:
        """With the weights of now."""
        return replace(self.mixture, weights=tuple(self.evidence.weights()))

    def next_run(self, position: int, max_tokens: int, *, dropped: bool) -> Run:
        """The run of spans from `position` that one member speaks, by the weights of now."""
        return self.now().next_run(position, max_tokens, dropped=dropped)


@dataclass(frozen=True)
class AdaptiveMean:
    """Σ λᵢ pᵢ with weights that follow the transcript; members tell everything, as it is."""

    evidence: Evidence = field(repr=False)
    warp: Warp

    def first_asks(self) -> list[Ask]:
        """What to ask of each member at each token."""
        return [Ask(0)] * self.evidence.num_members

    def more_asks(self, told: Sequence[Distribution]) -> list[Ask | None]:
        """Nothing: all is told."""
        return [None] * len(told)

    def combine(self, told: Sequence[Distribution]) -> Combined:
        """The mean of what each member's distribution is warped to, by the weights of now."""
        if not self.warp.is_greedy:
            told = [replace(d, logprobs=warped(d.logprobs, self.warp)) for d in told]
        return Mean(self.evidence.weights(), 0, self.warp).combine(told)

    def learn(self, told: Sequence[Distribution], id: int) -> None:
        """Every member has its view of the token at once."""
        position = self.evidence.num_tokens
        for member, distribution in enumerate(told):
            logprobs = distribution.of(np.array([id]))
            self.evidence.note(member, position, logprobs.tolist())
