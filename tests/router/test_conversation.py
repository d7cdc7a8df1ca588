"""What turns of one conversation have in common, and nothing else has."""

from __future__ import annotations

from cluster.members.base import Prompt
from cluster.router.conversation import conversation_key
from cluster.text.chat import Message


def test_keys_are_of_conversations_and_tell_nothing_of_them() -> None:
    said, question = Message("user", "Tell me of the sea."), Message("user", "And then?")
    chat, other = Prompt(messages=(said,)), Prompt(messages=(question,))
    grown = Prompt(messages=(said, Message("assistant", "Once"), question))
    assert conversation_key(chat, "") == conversation_key(grown, "") != conversation_key(other, "")
    assert conversation_key(chat, "a") == conversation_key(other, "a") != conversation_key(chat, "")
    ruled = Prompt(messages=(Message("system", "Be brief."), said))
    assert conversation_key(ruled, "") != conversation_key(chat, "")
    assert conversation_key(Prompt(text="It is"), "") == ""
    assert conversation_key(Prompt(text="It is"), "a") == conversation_key(chat, "a")
    assert "sea" not in conversation_key(chat, "")
