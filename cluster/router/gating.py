"""Gates that read the prompt alone: they weigh the members before anything is said."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np

from cluster.blending.gates import Choice, by_examples, by_keywords
from cluster.members.base import Prompt
from cluster.rankers.base import Measures, Ranker, RankRequest, last_message
from cluster.router.blends import ServedBlend
from cluster.router.methods import choice_of
from cluster.spec import ExampleGate, KeywordGate, LearnedGate, RouteSpec


class PromptGates:
    """Asks rankers what prompts are like; what examples are like is asked once."""

    def __init__(self, rankers: Mapping[str, Ranker]) -> None:
        self._rankers = rankers
        self._examples: dict[tuple[str, tuple[str, ...]], Measures] = {}

    async def weights(
        self, blend: ServedBlend, spec: RouteSpec, prior: Mapping[str, float], prompt: Prompt
    ) -> dict[str, float]:
        """The members' shares for a reply to the prompt, in the blend's order."""
        text, gate = last_message(prompt), spec.gate
        choose = partial(_weights, choice_of(spec, prior), list(spec.members))
        match gate:
            case KeywordGate():
                rules = [(rule.match, rule.member) for rule in gate.rules]
                chosen = by_keywords(rules, gate.otherwise, text)
                return {name: float(name == chosen) for name in spec.members}
            case ExampleGate():
                (vector,) = await self._measure(gate.ranker, (text,))
                examples = {n: await self._known(gate.ranker, e) for n, e in gate.examples.items()}
                return choose(by_examples(vector, examples, gate.sharpness))
            case LearnedGate(ranker=str(ranker)):
                assert blend.gate is not None, "a served blend has its gate"
                (vector,) = await self._measure(ranker, (text,))
                logits = blend.gate.network.logits(vector)
                return choose(dict(zip(spec.members, logits.tolist(), strict=True)))
        raise AssertionError("this gate is asked as the reply goes")

    async def _measure(self, ranker: str, texts: tuple[str, ...]) -> Measures:
        return await self._rankers[ranker].measure(RankRequest(Prompt(text=""), texts))

    async def _known(self, ranker: str, examples: tuple[str, ...]) -> Measures:
        place = ranker, examples
        if place not in self._examples:
            self._examples[place] = await self._measure(ranker, examples)
        return self._examples[place]


def _weights(choice: Choice, members: list[str], logits: Mapping[str, float]) -> dict[str, float]:
    """Who has no logit has no share."""
    found = choice.weights([logits.get(name, -np.inf) for name in members])
    return dict(zip(members, found, strict=True))
