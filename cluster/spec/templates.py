"""Jinja templates of a blend file: checked once when it is read, rendered in a sandbox."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from cluster.spec.values import refuse

if TYPE_CHECKING:
    from jinja2 import Environment, Template


def check_template(text: str, *, needs: Sequence[str], knows: Sequence[str] = ()) -> str:
    """Refuse one that cannot be parsed, lacks a variable that it needs, or has an unknown one."""
    from jinja2 import TemplateSyntaxError, meta

    try:
        template = _environment().parse(text)
    except TemplateSyntaxError as error:
        raise refuse(f"expected a Jinja template: line {error.lineno}: {error.message}") from None
    used = meta.find_undeclared_variables(template)
    if missing := [name for name in needs if name not in used]:
        raise refuse(f"expected a template that uses {' and '.join(missing)}")
    if unknown := sorted(used - {*needs, *knows}):
        known = ", ".join([*needs, *knows])
        raise refuse(f"expected no variables but {known}; found {', '.join(unknown)}")
    return text


def render(text: str, **values: object) -> str:
    """What a checked template says."""
    return _compiled(text).render(**values)


@lru_cache(maxsize=64)
def _compiled(text: str) -> Template:
    return _environment().from_string(text)


@lru_cache(maxsize=1)
def _environment() -> Environment:
    from jinja2 import StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    return ImmutableSandboxedEnvironment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
