"""By what turns of one conversation know each other. Pure."""

from __future__ import annotations

import hashlib
import json

from cluster.members.base import Prompt

_KEY_BYTES = 16


def conversation_key(prompt: Prompt, conversation_id: str) -> str:
    """A digest that all turns of one conversation have in common; empty for what has no turns.

    What the caller calls the conversation, else how it begins, up to the first thing a user says.
    """
    if conversation_id:
        return _digest(["id", conversation_id])
    if prompt.messages is None:
        return ""
    roles = [message.role for message in prompt.messages]
    end = roles.index("user") + 1 if "user" in roles else len(roles)
    opening = [[message.role, message.content] for message in prompt.messages[:end]]
    return _digest(["chat", opening])


def _digest(content: object) -> str:
    """What was said must not be readable from the key: keys travel further than prompts do."""
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=_KEY_BYTES).hexdigest()
