"""One streamed reply: asked for, shown as it comes, and measured."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.text import Text

from cluster.cli.call import Server, cancelled_by_ctrl_c
from cluster.cli.output import print_line
from cluster.cli.paint import Painter, Voices, print_legend
from cluster.cli.proposals import print_proposals
from cluster.cli.runs import Runs
from cluster.client.blocking import Messages
from cluster.client.patience import Patience
from cluster.client.resumable import Resumable
from cuvee.v1 import generation_pb2 as pb

_PATIENCE = Patience(waits_for_room=False)  # a person would rather know
_FINISHES = {
    pb.FINISH_REASON_END_OF_TURN: "end of turn",
    pb.FINISH_REASON_STOP_STRING: "stop string",
    pb.FINISH_REASON_MAX_TOKENS: "token limit",
    pb.FINISH_REASON_CONTEXT_FULL: "context full",
}
_LAWS = {pb.LAW_BOUNDED: "truncated, within bounds", pb.LAW_APPROXIMATE: "approximate"}


@dataclass(slots=True)
class Reply:
    """What came, and how long it took."""

    response: pb.GenerateResponse = field(default_factory=pb.GenerateResponse)
    first_token_s: float = 0.0
    total_s: float = 0.0
    num_streams: int = 1  # more: the router was lost, and another went on

    @property
    def usage(self) -> pb.Usage:
        return self.response.outcome.usage

    @property
    def num_tokens(self) -> int:
        return self.usage.completion_tokens

    @property
    def tokens_per_s(self) -> float:
        """All tokens over all of the time, since several may come as one message."""
        return self.num_tokens / self.total_s if self.total_s else 0.0


def stream(
    server: Server,
    request: pb.StreamGenerateRequest,
    painter: Painter | None,
    *,
    timeout_s: float | None = None,
    reply: Reply | None = None,
) -> Reply:
    """Ask, paint what comes as it comes, and give back the whole.

    A caller that wants to keep what had come when it was interrupted passes the `reply` to fill.
    """
    reply = reply or Reply()
    runs = Runs()
    start_s = time.monotonic()
    resumable = Resumable(request, _PATIENCE)
    messages = Messages(lambda _: server.generation.StreamGenerate, resumable, timeout_s)
    with _waiting() as done_waiting, cancelled_by_ctrl_c(messages):
        try:
            for piece in messages:
                reply.total_s = time.monotonic() - start_s
                reply.num_streams = resumable.num_streams
                _add(reply.response, piece)
                if not (piece.text_delta or piece.tokens or piece.HasField("outcome")):
                    continue
                reply.first_token_s = reply.first_token_s or reply.total_s
                done_waiting()
                if painter:
                    tokens = ((token.member, token.bytes) for token in piece.tokens)
                    painter.paint(runs.push(piece.text_delta, tokens))
            if painter:
                painter.paint(runs.finish())
        finally:
            done_waiting()
            if painter:
                painter.end_line()
    return reply


def _add(response: pb.GenerateResponse, piece: pb.StreamGenerateResponse) -> None:
    response.request_id = piece.request_id
    response.text += piece.text_delta
    response.tokens.extend(piece.tokens)
    if piece.HasField("outcome"):
        response.outcome.CopyFrom(piece.outcome)


@contextmanager
def _waiting() -> Iterator[Callable[[], None]]:
    """A spinner on stderr until the first token is there; gives what ends it."""
    console = Console(file=sys.stderr)
    status = console.status("waiting for the first token")
    if console.is_terminal:
        status.start()
    try:
        yield status.stop
    finally:
        status.stop()


def print_account(console: Console, voices: Voices, reply: Reply) -> None:
    """What was proposed, the legend, then one line of numbers."""
    print_proposals(console, voices, reply.response.outcome.proposals)
    print_legend(console, voices, reply.usage)
    print_line(console, Text(f"  {summary(reply)}", "dim"))


def summary(reply: Reply) -> str:
    """48 tokens in 1.3 s: 38 tokens/s, first after 0.06 s; end of turn; seed 7."""
    outcome = reply.response.outcome
    words = f"{reply.num_tokens} tokens in {reply.total_s:.2f} s"
    if reply.tokens_per_s:
        words += f": {reply.tokens_per_s:.0f} tokens/s"
    words += f", first after {reply.first_token_s:.2f} s"
    if reply.num_streams > 1:
        words += f", over {reply.num_streams} streams"
    finish = _FINISHES.get(outcome.finish_reason, "")
    if outcome.stop_string:
        finish += f" {outcome.stop_string!r}"
    law = _LAWS.get(outcome.law, "")
    if outcome.dropped_share:
        law += f": {outcome.dropped_share / max(1, reply.num_tokens):.2%} left out per byte"
    return "; ".join(filter(None, (words, finish, law, f"seed {outcome.seed}", outcome.blend)))
