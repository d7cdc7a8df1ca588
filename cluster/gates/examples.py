"""What a gate learns from: prompts with the member that should answer, or with a good reply."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.errors import InvalidRequest
from cluster.members.base import Prompt
from cluster.text.chat import ROLES, Message

_KEYS = {"prompt", "messages", "member", "reply"}


@dataclass(frozen=True, slots=True)
class Example:
    """One line of a training file."""

    prompt: Prompt
    reply: str | None
    member: str | None  # who should answer; without one, who finds the reply likelier


def read_examples(path: Path, members: Collection[str]) -> list[Example]:
    """Every line of a JSONL file; raises InvalidRequest with the line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest("EXAMPLES_UNREADABLE", f"{path}: {error}", field="data") from None
    return [
        _example(line, f"{path}:{number}", members)
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]


def _example(line: str, place: str, members: Collection[str]) -> Example:
    def refuse(words: str) -> InvalidRequest:
        return InvalidRequest("EXAMPLE_INVALID", f"{place}: {words}", field="data")

    try:
        given = json.loads(line)
    except ValueError as error:
        raise refuse(f"no JSON: {error}") from None
    if not isinstance(given, dict) or not given.keys() <= _KEYS:
        raise refuse(f"expected an object with keys of {', '.join(sorted(_KEYS))}")
    member, reply = given.get("member"), given.get("reply")
    if member is None and not reply:
        raise refuse("expected member, the one that should answer, or reply, a good answer")
    if member is not None and member not in members:
        raise refuse(f"got member {member!r}; expected one of {', '.join(members)}")
    if reply is not None and not isinstance(reply, str):
        raise refuse("expected reply to be text")
    prompt = _prompt(given)
    if prompt is None:
        raise refuse("expected prompt, some text, or messages, each with role and content")
    return Example(prompt, reply, member)


def _prompt(given: dict[str, Any]) -> Prompt | None:
    text, messages = given.get("prompt"), given.get("messages")
    if messages is None:
        return Prompt(text=text) if isinstance(text, str) and text else None
    is_chat = isinstance(messages, list) and bool(messages) and text is None
    if not is_chat or not all(_is_message(message) for message in messages):
        return None
    return Prompt(messages=tuple(Message(m["role"], m["content"]) for m in messages))


def _is_message(given: Any) -> bool:
    return (
        isinstance(given, dict)
        and given.keys() == {"role", "content"}
        and given["role"] in ROLES
        and isinstance(given["content"], str)
    )
