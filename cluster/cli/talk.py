"""The back and forth of `cuvee chat`: a line in, a reply out, until the input ends."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

import grpc
from rich.console import Console
from rich.text import Text

from cluster.cli.call import Refusal, Server, say
from cluster.cli.conversation import Conversation
from cluster.cli.output import print_line
from cluster.cli.paint import Painter, Voices, shares_line
from cluster.cli.reply import Reply, stream
from cuvee.v1 import blend_pb2

_YOU = "you> "


class Talk:
    """One conversation at the terminal."""

    def __init__(
        self,
        server: Server,
        blend: blend_pb2.Blend,
        conversation: Conversation,
        *,
        max_tokens: int | None = None,
        marks: bool = False,
    ) -> None:
        self.num_refused = 0
        self._server = server
        self._conversation = conversation
        self._max_tokens = max_tokens
        self._voices = Voices(member.name for member in blend.members)
        self._painter = Painter(self._voices, marks=marks)

    def take(self, line: str) -> None:
        """A command to carry out, or a turn to answer."""
        if line.startswith("/"):
            self._conversation.command(line, say)
            return
        self._conversation.ask(line)
        reply = Reply()
        try:
            self._stream(reply)
        except KeyboardInterrupt:
            say("stopped")
        except grpc.RpcError as error:
            self.num_refused += 1
            Refusal.of(error, self._server.address).print(as_json=False)
        finally:  # what came stands, however it ended: the person has read it
            self._conversation.answer(reply.response.text)

    def _stream(self, reply: Reply) -> None:
        stream(
            self._server, self._conversation.request(self._max_tokens), self._painter, reply=reply
        )
        words = f"{reply.num_tokens} tokens"
        if reply.tokens_per_s:
            words += f", {reply.tokens_per_s:.0f}/s"
        line = shares_line(self._voices, reply.usage) + Text(words, "dim")
        print_line(Console(stderr=True), line)


def spoken_lines() -> Iterator[str]:
    """What the person types, or the lines of a pipe; empty ones are passed over."""
    is_typed = sys.stdin.isatty()
    if is_typed:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  # arrow keys and history, by being imported
    while True:
        try:
            line = input(_YOU) if is_typed else sys.stdin.readline()
        except EOFError:
            sys.stderr.write("\n")
            return
        except KeyboardInterrupt:
            if not is_typed:
                raise
            say("\n(Ctrl-D leaves)")
            continue
        if not (line or is_typed):
            return
        if line.strip():
            yield line.strip()
