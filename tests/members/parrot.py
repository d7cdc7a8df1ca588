"""A model that knows a few texts by heart and says them on, in its own tokenizer's tokens.

It hears what its replica made of the transcript. If that is not the beginning of the text, byte for
byte, it draws a mark that no text has, and ends: so a stream is right if and only if every member
was told exactly what was said before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cluster.text.member import MemberText

MARK = b"~"


class Parrot:
    """Finds likeliest what goes on with the text that belongs to the prompt."""

    def __init__(self, member: MemberText, texts: Mapping[str, str]) -> None:
        self._member = member
        self._texts = [
            (member.render(prompt, None), text.encode()) for prompt, text in texts.items()
        ]
        self._byte_ids = {data: i for i, data in enumerate(member.token_bytes) if len(data) == 1}
        assert not any(MARK in text for _, text in self._texts)

    def __call__(self, ids: Sequence[int]) -> int:
        prompt, text = next(pair for pair in self._texts if list(ids[: len(pair[0])]) == pair[0])
        heard = b"".join(self._member.token_bytes[i] for i in ids[len(prompt) :])
        if heard == text or heard.endswith(MARK):
            return self._member.end_ids[0]
        if not text.startswith(heard):
            return self._byte_ids[MARK]
        return self._next(text, len(heard))

    def _next(self, text: bytes, num_heard: int) -> int:
        """The canonical next token, counted from the last whole character.

        Inside one of those tokens, as another tokenizer may leave it, the next byte alone.
        """
        at = num_heard
        while text[at] & 0xC0 == 0x80:
            at -= 1
        for token in self._member.canonical.encode(text[at:].decode()):
            if at >= num_heard:
                break
            at += len(self._member.token_bytes[token])
        return token if at == num_heard else self._byte_ids[text[num_heard : num_heard + 1]]
