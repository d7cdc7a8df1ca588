"""Blending Is All You Need over a conversation: each reply by one member, given all others'."""

from __future__ import annotations

from collections import Counter

import torch
from scipy.stats import binomtest
from transformers import AutoModelForCausalLM, AutoTokenizer

from cluster.blending.mixture import Mixture
from cluster.members.base import Prompt
from cluster.models.resolve import resolve
from cluster.router.requests import GenerationRequest, Sampling, Stopping
from cluster.text.chat import Message
from tests.rig import Rig, running

NUM_TURNS = 10
MAX_TOKENS = 30
FALSE_ALARM_RATE = 1e-6
MEMBERS = ("austen", "kjv")


class Plain:
    """A member as transformers alone would run it."""

    def __init__(self, name: str) -> None:
        folder = resolve(f"embedded:tiny-{name}", download=False)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def answer(self, messages: list[Message]) -> str:
        """The greedy reply to the whole conversation."""
        turns = [{"role": m.role, "content": m.content} for m in messages]
        ids = self.tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        out = self.model.generate(**ids, max_new_tokens=MAX_TOKENS, do_sample=False)
        new = out[0, ids["input_ids"].shape[1] :]
        return str(self.tokenizer.decode(new, skip_special_tokens=True))


async def reply(rig: Rig, messages: list[Message], seed: int) -> tuple[str, str]:
    """The greedy reply and who said it."""
    request = GenerationRequest(
        "replies",
        Prompt(messages=tuple(messages)),
        Sampling(temperature=0, seed=seed),
        Stopping(max_tokens=MAX_TOKENS),
    )
    updates = [update async for update in rig.router.generate(request)]
    outcome = updates[-1].outcome
    assert outcome is not None
    return "".join(update.text for update in updates), outcome.usage[0].member


async def test_each_reply_answers_all_that_the_others_said() -> None:
    plain = {name: Plain(name) for name in MEMBERS}
    messages: list[Message] = []
    speakers: list[str] = []
    async with running() as rig:
        for turn in range(NUM_TURNS):
            messages.append(Message("user", f"And what of number {turn}?"))
            text, speaker = await reply(rig, messages, seed=turn)
            assert text == plain[speaker].answer(messages)
            messages.append(Message("assistant", text))
            speakers.append(speaker)
    assert set(speakers) == set(MEMBERS)  # so each had replies of the other before it


def test_members_are_drawn_by_their_weights() -> None:
    weights = (0.2, 0.8)
    drawn = Counter(Mixture(weights, "response", seed).speaker(0) for seed in range(5000))
    assert binomtest(drawn[0], 5000, weights[0]).pvalue > FALSE_ALARM_RATE
    assert binomtest(drawn[0], 5000, 0.25).pvalue < FALSE_ALARM_RATE
