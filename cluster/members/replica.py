"""One replica of a member: turns the router's steps into the engine's works.

Text stops here: below is the engine, which knows token ids only; above is the router, which knows
text or ids and no cache. A sequence's token ids are a pure function of the prompt, the transcript
and the member's own tokens since its run began, so a fresh replica that is told the same computes
the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from cluster.engine.types import Output
from cluster.members.base import Emit, Form, MemberInfo, SequenceStart, Tokens
from cluster.members.bytewise import ByteSequence
from cluster.members.opening import EngineFront, ReplicaSequence
from cluster.members.sequence import TokenSequence
from cluster.text.member import MemberText


class Replica:
    """All sequences of one engine. Lives on one event loop; the engine has its own thread."""

    def __init__(
        self,
        info: MemberInfo,
        text: MemberText,
        make_engine: Callable[[Callable[[list[Output]], None]], EngineFront],
    ) -> None:
        self.info = info
        self.text = text
        self._loop = asyncio.get_running_loop()
        self._sequences: dict[int, ReplicaSequence] = {}
        self.engine = make_engine(self._report)

    def open(self, start: SequenceStart, emit: Emit) -> ReplicaSequence:
        """Begin a sequence; answered by `Opened` or `Failed`."""
        make = ByteSequence if start.form is Form.BYTES else TokenSequence
        sequence = make(self.info, self.text, self.engine, start, emit, self._sequences.pop)
        self._sequences[sequence.id] = sequence
        sequence.begin()
        return sequence

    @property
    def tokens(self) -> Tokens:
        """What the member's token ids stand for."""
        return Tokens(self.text.token_bytes, frozenset(self.text.end_ids))

    @property
    def is_alive(self) -> bool:
        """Whether the engine can carry out works."""
        return self.engine.is_alive

    def stop(self) -> None:
        """End the engine's thread."""
        self.engine.stop()

    @property
    def num_sequences(self) -> int:
        """How many sequences are open."""
        return len(self._sequences)

    def _report(self, outputs: list[Output]) -> None:
        """Called on the engine's thread after every forward pass."""
        self._loop.call_soon_threadsafe(self._dispatch, outputs)

    def _dispatch(self, outputs: list[Output]) -> None:
        for output in outputs:
            sequence = self._sequences.get(output.sequence)
            if sequence is not None:
                sequence.on_output(output)
