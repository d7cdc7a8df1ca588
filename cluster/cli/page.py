"""A reply as one self-contained page: no script, no network; labels beside every colour."""

from __future__ import annotations

from importlib.resources import files

from cluster.cli.paint import PALETTE, Voices
from cluster.cli.proposals import rows_of
from cluster.cli.runs import Runs
from cluster.cli.tokens import chance, shares_of, spelled, weights_of
from cuvee.v1 import blend_pb2
from cuvee.v1 import generation_pb2 as pb


def make_page(
    blend: blend_pb2.Blend, prompt: str, response: pb.GenerateResponse, voices: Voices
) -> str:
    """HTML; everything that was generated is escaped."""
    from jinja2 import Environment

    colours = {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(voices.names)}
    template = (files("cluster.cli") / "page.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    usage = {member.member: member for member in response.outcome.usage.members}
    total = sum(member.drawn_tokens for member in usage.values()) or 1
    return environment.from_string(template).render(
        blend=blend,
        prompt=prompt,
        outcome=response.outcome,
        members=[
            {
                "name": member.name,
                "tag": voices.tag(member.name),
                "colour": colours[member.name],
                "words": member.role or f"weight {member.weight:.2g}",
                "share": usage[member.name].drawn_tokens / total if member.name in usage else 0.0,
            }
            for member in blend.members
        ],
        runs=[
            {"text": text, "member": member, "colour": colours.get(member, "#888888")}
            for member, text in _runs(response)
        ],
        tags={name: voices.tag(name) for name in voices.names},
        proposals=[
            {
                "row": row,
                "tag": voices.tag(row.member),
                "colour": colours.get(row.member, "#888888"),
            }
            for row in rows_of(response.outcome.proposals)
        ],
        tokens=[
            {
                "position": token.position,
                "text": spelled(token.bytes),
                "colour": colours.get(token.member, "#888888"),
                "chance": chance(token.logprob),
                "shares": [
                    {"tag": voices.tag(name), "share": share, "colour": colours.get(name, "")}
                    for name, share in shares_of(token)
                ],
                "weights": [
                    {"tag": voices.tag(name), "share": weight, "colour": colours.get(name, "")}
                    for name, weight in weights_of(token)
                ],
                "candidates": [
                    {"text": spelled(c.bytes), "chance": chance(c.logprob)}
                    for c in token.top_candidates
                ],
                "bound": token.truncation_bound,
            }
            for token in response.tokens
        ],
    )


def _runs(response: pb.GenerateResponse) -> list[tuple[str, str]]:
    """The text by its speakers; a character goes to the member that completes it."""
    runs = Runs()
    found = runs.push(response.text, [(token.member, token.bytes) for token in response.tokens])
    return [*found, *runs.finish()]
