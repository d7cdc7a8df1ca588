"""Ranks whole replies: asks members or rankers what they think of them, and applies the rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from cluster.blending import choosing
from cluster.engine.types import SamplingParams
from cluster.errors import InvalidRequest, Unsupported
from cluster.members.base import Form, Member, Prompt, ScoreText, SequenceStart, Step
from cluster.rankers.base import Ranker, RankRequest
from cluster.router.answers import Proposal, ProposalState
from cluster.router.on_each import all_of, on_each
from cluster.spec import ClusterSpec
from cluster.spec.references import LIKELIHOOD, VOTE


class Ranking:
    """How the replies of one request are ranked."""

    def __init__(
        self,
        weights: Mapping[str, float],
        members: Mapping[str, Member],
        rankers: Mapping[str, Ranker],
        spec: ClusterSpec,
        *,
        waits: bool = True,
    ) -> None:
        """`weights`: how much each member that proposes counts, summing to 1.

        `waits`: for members that have no replica left; else those have no say.
        """
        self._waits = waits
        self._weights = weights
        self._members = members
        self._rankers = rankers
        self._spec = spec

    async def ranked(
        self, proposals: Sequence[Proposal], rank: str, prompt: Prompt, extract: str | None
    ) -> list[Proposal]:
        """The complete ones with their scores, best first; of equals, the first proposed."""
        complete = [p for p in proposals if p.state is ProposalState.COMPLETE]
        if extract is not None:
            complete = [replace(p, answer=choosing.extracted(extract, p.text)) for p in complete]
        scores = await self._scores(complete, rank, prompt)
        scored = [replace(p, score=float(s)) for p, s in zip(complete, scores, strict=True)]
        return sorted(scored, key=lambda p: -(p.score or 0.0))

    async def _scores(
        self, proposals: Sequence[Proposal], rank: str, prompt: Prompt
    ) -> choosing.Scores:
        texts = tuple(p.text for p in proposals)
        if rank == VOTE:
            if not any(p.answer for p in proposals):
                raise Unsupported(
                    "EMPTY_VOTE",
                    f"in none of {len(proposals)} replies does the blend's extract find an answer",
                    field="blend",
                )
            return choosing.by_vote([p.answer for p in proposals], self._shares(proposals))
        if rank == LIKELIHOOD:
            return await self._by_likelihood(texts, prompt)
        found = await self._rankers[rank].measure(RankRequest(prompt, texts))
        match self._spec.rankers[rank].kind:
            case "reward":
                return np.asarray(found, np.float64)
            case "pairwise":
                return choosing.by_pairs(found)
            case "embedding":
                return choosing.by_consensus(found, self._shares(proposals))

    def _shares(self, proposals: Sequence[Proposal]) -> list[float]:
        """Each reply's part in its member's weight."""
        names = [p.member for p in proposals]
        return [self._weights[name] / names.count(name) for name in names]

    async def _by_likelihood(self, texts: Sequence[str], prompt: Prompt) -> choosing.Scores:
        """All replies under all members that propose, each in its own tokens.

        A member whose context one of them does not fit judges none of them, nor does one that is
        gone and not waited for.
        """
        start = SequenceStart(prompt, Form.TOKEN_IDS, SamplingParams(), seed=0, prefill=False)
        timeout_s = self._spec.limits.lease_timeout_s

        async def logprob(name: str, text: str) -> float:
            if not text:
                return 0.0
            member = {name: self._members[name]}
            found = await on_each(member, start, Step(0, ScoreText(text)), timeout_s)
            return sum(token.logprob for token in found[name].tokens)

        async def logprobs(name: str) -> list[float] | None:
            if not self._waits and self._members[name].is_gone:
                return None
            try:
                return await all_of(logprob(name, text) for text in texts)
            except InvalidRequest as error:
                if error.reason != "CONTINUATION_TOO_LONG":
                    raise
                return None

        found = await all_of(map(logprobs, self._weights))
        views = zip(self._weights.values(), found, strict=True)
        judges = [(weight, view) for weight, view in views if view is not None]
        if not judges:
            raise Unsupported(
                "REPLIES_TOO_LONG",
                "no member's context holds all replies, so none can judge; ask for fewer tokens",
                field="stopping.max_tokens",
            )
        total = sum(weight for weight, _ in judges)
        num_bytes = [len(text.encode()) for text in texts]
        table = np.array([view for _, view in judges]).T
        return choosing.by_likelihood(table, num_bytes, [weight / total for weight, _ in judges])
