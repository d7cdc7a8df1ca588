"""`cuvee chat`: a conversation with a blend; every reply says who wrote it."""

from __future__ import annotations

from typing import Annotated

import typer

from cluster.cli.options import DEFAULT_SERVER, BlendOption, MarksOption, ServerOption

_TIMEOUT_S = 10.0
_HIGHEST_SEED = 2**64 - 1


def chat(
    blend: BlendOption = "",
    server: ServerOption = DEFAULT_SERVER,
    system: Annotated[str, typer.Option(help="Instructions for the whole conversation.")] = "",
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Most tokens a reply.")] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=_HIGHEST_SEED, help="Use it for every reply.")
    ] = None,
    marks: MarksOption = False,
) -> None:
    """Talk with a blend. Ctrl-C stops a reply, Ctrl-D leaves, /help lists commands.

    Piped, each line of stdin is a turn and stdout carries the replies alone.
    """
    from cluster.cli.call import calling, say
    from cluster.cli.conversation import Conversation
    from cluster.cli.talk import Talk, spoken_lines

    with calling(server) as called:
        served = called.blend(blend, _TIMEOUT_S)
        conversation = Conversation(served, system=system)
        conversation.seed = seed
        names = ", ".join(member.name for member in served.members)
        say(f"{served.name}: {names}. Ctrl-C stops a reply, Ctrl-D leaves, /help.")
        if not conversation.is_chat:
            say("No chat template here: what is said is one text that the members continue.")
        talk = Talk(called, served, conversation, max_tokens=max_tokens, marks=marks)
        for line in spoken_lines():
            talk.take(line)
    if talk.num_refused:
        raise typer.Exit(1)
