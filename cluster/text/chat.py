"""Prompts in a model's own form, with nothing a user typed taken for control tokens.

Messages go through the model's own chat template. Before, every control token spelled in a message
is broken with a character that occurs nowhere in the messages, and so are both ends of the message,
inside the white space a template may trim. Whatever the template then does (trim, split, repeat,
join), the control tokens found in its output are its own. The stretches between them are encoded as
ordinary text with the breaks taken out again: what was said arrives as said, and a prompt without
injections gets exactly the tokenizer's own ids. (Only a template that asks how a message begins or
ends, or deletes from its inside, could notice.)
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from jinja2.exceptions import TemplateError

from cluster.errors import InvalidRequest, Unsupported
from cluster.text.ordinary import ControlToken
from cluster.text.retokenize import Canonical

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Message:
    """One turn of a conversation; `role` is one of ROLES."""

    role: str
    content: str


def render_prompt(
    tokenizer: Any, canonical: Canonical, *, text: str | None, messages: Sequence[Message] | None
) -> list[int]:
    """Prompt ids: of plain text as the tokenizer begins one, or of messages awaiting an answer."""
    if text is not None and messages is None:
        return [*canonical.start_ids, *canonical.encode_section(text, at_start=True)]
    if messages is not None and text is None:
        return _render_messages(tokenizer, canonical, messages)
    raise InvalidRequest("ONE_PROMPT", "give either text or messages, not both", field="prompt")


def _render_messages(
    tokenizer: Any, canonical: Canonical, messages: Sequence[Message]
) -> list[int]:
    _check(messages)
    if not tokenizer.chat_template:
        raise Unsupported(
            "NO_CHAT_TEMPLATE",
            "this model has no chat template, so it takes plain text only: send `text` instead of "
            "`messages`, or give the model a chat template",
        )
    controls = {control.text: control for control in canonical.controls}
    breaker = _unused_character(messages)
    turns = [
        {"role": m.role, "content": _break(m.content, controls, breaker, f"messages[{i}].content")}
        for i, m in enumerate(messages)
    ]
    try:
        rendered = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        raise InvalidRequest(
            "MESSAGES_REFUSED",
            f"the model's chat template refuses these messages: {error}",
            field="messages",
        ) from error
    ids: list[int] = []
    for part, at_start in _sections(rendered, controls):
        if isinstance(part, ControlToken):
            ids.append(part.id)
        else:
            ids += canonical.encode_section(part.replace(breaker, ""), at_start=at_start)
    return ids


def _check(messages: Sequence[Message]) -> None:
    if not messages:
        raise InvalidRequest("NO_MESSAGES", "give at least one message", field="messages")
    for i, message in enumerate(messages):
        if message.role not in ROLES:
            raise InvalidRequest(
                "UNKNOWN_ROLE",
                f"role {message.role!r} is none of {', '.join(ROLES)}",
                field=f"messages[{i}].role",
            )


def _break(content: str, controls: dict[str, ControlToken], breaker: str, field: str) -> str:
    """`content` with the breaker inside every control token it spells, and around the whole."""
    if not controls:
        return content
    if any(len(text) == 1 and text in content for text in controls):
        raise InvalidRequest(
            "CONTROL_CHARACTER", "contains a character the model reserves for control", field=field
        )
    overlapping = f"(?={_any_of(controls)})."
    broken = re.sub(overlapping, f"\\g<0>{breaker}", content, flags=re.DOTALL)
    said = broken.strip()
    return broken.replace(said, f"{breaker}{said}{breaker}") if said else content


def _sections(
    rendered: str, controls: dict[str, ControlToken]
) -> Iterator[tuple[str | ControlToken, bool]]:
    """The control tokens and the text between them; and whether a text begins the whole."""
    start = 0
    for match in re.finditer(_any_of(controls), rendered) if controls else ():
        control = controls[match[0]]
        text = rendered[start : match.start()]
        if control.lstrip:
            text = text.rstrip()
        if text:
            yield text, start == 0
        yield control, False
        start = match.end()
        if control.rstrip:
            rest = rendered[start:]
            start += len(rest) - len(rest.lstrip())
    if rendered[start:]:
        yield rendered[start:], start == 0


def _any_of(controls: dict[str, ControlToken]) -> str:
    longest_first = sorted(controls, key=len, reverse=True)
    return "(?:" + "|".join(map(re.escape, longest_first)) + ")"


def _unused_character(messages: Sequence[Message]) -> str:
    """A character in none of the messages; Unicode promises never to use the first ones tried."""
    used = set[str]().union(*(message.content for message in messages))
    codes = chain(range(0xFDD0, 0xFDF0), range(0xF0000, 0x110000))
    return next(char for char in map(chr, codes) if char not in used)
