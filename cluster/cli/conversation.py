"""A conversation as the client keeps it: whole, and sent whole with every turn."""

from __future__ import annotations

from collections.abc import Callable

from cuvee.v1 import blend_pb2
from cuvee.v1 import generation_pb2 as pb


class Conversation:
    """Turns so far, and the request that asks for the next one.

    Members without a chat template cannot tell turns apart; they get all of them as one text, a
    line each, and continue it.
    """

    def __init__(self, blend: blend_pb2.Blend, *, system: str = "") -> None:
        self.is_chat = all(member.has_chat_template for member in blend.members)
        self.seed: int | None = None
        self._blend = blend.name
        self._system = system
        self._turns: list[tuple[pb.Role.ValueType, str]] = []

    @property
    def num_turns(self) -> int:
        return len(self._turns)

    def reset(self) -> None:
        """Forget all turns; the system message and the seed stay."""
        self._turns.clear()

    def ask(self, text: str) -> None:
        self._turns.append((pb.ROLE_USER, text))

    def answer(self, text: str) -> None:
        """Keep a reply, whole or cut short; where nothing came, the question goes as well."""
        if text:
            self._turns.append((pb.ROLE_ASSISTANT, text))
        else:
            self._turns.pop()

    def request(self, max_tokens: int | None) -> pb.StreamGenerateRequest:
        """Everything said so far, to be answered."""
        request = pb.StreamGenerateRequest(
            blend=self._blend,
            sampling=pb.Sampling(seed=self.seed),
            stopping=pb.Stopping(max_tokens=max_tokens),
        )
        if not self.is_chat:
            lines = ([self._system] if self._system else []) + [text for _, text in self._turns]
            request.prompt = "\n".join(lines)
            return request
        if self._system:
            request.chat.messages.add(role=pb.ROLE_SYSTEM, content=self._system)
        for role, text in self._turns:
            request.chat.messages.add(role=role, content=text)
        return request

    def command(self, line: str, say: Callable[[str], None]) -> None:
        """Carry out `/reset`, `/seed N` or `/help`."""
        name, _, value = line.partition(" ")
        value = value.strip()
        if name == "/reset":
            self.reset()
            say("forgotten; a new conversation begins")
        elif name == "/seed" and not value:
            self.seed = None
            say("every reply draws its own seed")
        elif name == "/seed" and value.isascii() and value.isdigit() and int(value) < 2**64:
            self.seed = int(value)
            say(f"every reply uses seed {value}; /seed alone ends that")
        elif name == "/seed":
            say(f"got {value!r}; expected a whole number from 0 to 2^64 - 1")
        elif name == "/help":
            say(HELP)
        else:
            say(f"there is no command {name}; /help lists them")


HELP = """\
/reset    forget the conversation
/seed N   use this seed for every reply; without N, draw one each time
/help     this
Ctrl-C stops the reply under way, Ctrl-D leaves"""
