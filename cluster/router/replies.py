"""Whole replies first, then the answer: the best of them, or one written from them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import replace

from cluster.errors import InvalidRequest
from cluster.members.base import Prompt
from cluster.rankers.base import last_message
from cluster.router.answers import Proposal, ProposalState, ReplyToken, Update
from cluster.router.proposals import Panel
from cluster.router.ranking import Ranking
from cluster.router.resumption import ReceivedToken, Resumption, not_of_this_reply
from cluster.spec import ChooseSpec, FuseSpec
from cluster.spec.templates import render
from cluster.text.utf8 import Utf8Stream


async def choose(
    panel: Panel, ranking: Ranking, spec: ChooseSpec, prompt: Prompt, proposers: Sequence[str]
) -> AsyncGenerator[Update, None]:
    """The best reply, at once when it is known."""
    proposals = await panel.gather(panel.plans(proposers, 1, prompt), layer=1)
    ranked = await ranking.ranked(proposals, spec.rank, prompt, spec.extract)
    best = ranked[0]
    panel.proposals = _marked(panel.proposals, ranked, num_chosen=1)
    assert best.outcome is not None, "only complete proposals are ranked"
    text, tokens = _rest(best, panel.resumption)
    yield Update(text, tokens, panel.outcome(best.outcome))


async def fuse(
    panel: Panel, ranking: Ranking, spec: FuseSpec, prompt: Prompt, seed: int
) -> AsyncGenerator[Update, None]:
    """The fuser's reply, streamed, after as many rounds of proposals as there are layers."""
    asked = prompt
    for layer in range(1, spec.layers + 1):
        with _telling_why_long(layer > 1):
            proposals = await panel.gather(panel.plans(spec.proposers, layer, asked), layer)
        kept = [p for p in proposals if p.state is ProposalState.COMPLETE]
        num_kept = len(kept)
        if spec.top:
            assert spec.rank is not None, "the spec wants a rank where it wants the top"
            kept = await ranking.ranked(proposals, spec.rank, prompt, None)
            num_kept = spec.top
        panel.proposals = _marked(panel.proposals, kept, num_chosen=num_kept)
        asked = _with_replies(prompt, spec.template, [p.text for p in kept[:num_kept]])
    generation = panel.generation(panel.plan(spec.fuser, asked, seed, panel.resumption))
    async with aclosing(generation.updates()) as updates:
        with _telling_why_long(True):
            async for update in updates:
                if update.outcome is not None:
                    panel.add(generation.usage)
                    update.outcome = panel.outcome(update.outcome)
                yield update


def _rest(best: Proposal, resumption: Resumption | None) -> tuple[str, list[ReplyToken]]:
    """What the caller does not have of a reply that was written again, whole."""
    received = () if resumption is None else resumption.tokens
    for position, given in enumerate(received):
        if position >= len(best.tokens):
            raise not_of_this_reply(position, "a token", f"none after {len(best.tokens)}", "id")
        now = best.tokens[position]
        if given != ReceivedToken(now.member, now.token.id, now.token.bytes, now.weights):
            raise not_of_this_reply(position, f"{given}", "what the best reply says", "id")
    num_chars = len(Utf8Stream().push(b"".join(token.bytes for token in received)))
    return best.text[num_chars:], list(best.tokens[len(received) :])


def _marked(
    proposals: Sequence[Proposal], ranked: Sequence[Proposal], num_chosen: int
) -> list[Proposal]:
    """The proposals with what ranking found out, the best ones chosen."""
    found = {p.seed: replace(p, is_chosen=place < num_chosen) for place, p in enumerate(ranked)}
    return [found.get(p.seed, p) for p in proposals]


def _with_replies(prompt: Prompt, template: str, replies: list[str]) -> Prompt:
    """The prompt with the replies in it: in a conversation, in its last message."""
    text = render(template, prompt=last_message(prompt), replies=replies)
    if prompt.messages is None:
        return Prompt(text=text)
    *before, last = prompt.messages
    return Prompt(messages=(*before, replace(last, content=text)))


@contextmanager
def _telling_why_long(has_replies: bool) -> Iterator[None]:
    """A prompt that replies are part of may be too long through no fault of the caller's text."""
    try:
        yield
    except InvalidRequest as error:
        if not has_replies or error.reason != "PROMPT_TOO_LONG":
            raise
        why = "with the other replies in it: ask for shorter ones, fewer, or the top ones only"
        raise InvalidRequest(error.reason, f"{error.message}, {why}", field=error.field) from None
