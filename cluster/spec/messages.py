"""Pydantic's findings in our words: what was given, and what would be right there.

The words for "what would be right" are the `description` of the field concerned, found by walking
the spec's own types along the error's location.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from yaml import ScalarNode

from cluster.spec.blend import BlendBase, MixtureSpec
from cluster.spec.combined import ContrastSpec, EnsembleSpec, ProxySpec
from cluster.spec.lines import Document, misread
from cluster.spec.placed import MODEL_TAGS
from cluster.spec.references import Location, Problem, did_you_mean
from cluster.spec.replies import ChooseSpec, FuseSpec
from cluster.spec.route import GATES, RouteSpec
from cluster.spec.values import REFUSED

METHODS: dict[str, type[BlendBase]] = {
    "mixture": MixtureSpec,
    "ensemble": EnsembleSpec,
    "proxy": ProxySpec,
    "contrast": ContrastSpec,
    "choose": ChooseSpec,
    "fuse": FuseSpec,
    "route": RouteSpec,
}
_KEY = "[key]"
_MAX_SHOWN = 60
_WANTS_TEXT = {"string_type", "literal_error"}
_WANTS_NUMBER = {"int_type", "float_type"}


def problem_of(error: ErrorDetails, tree: type[BaseModel], document: Document) -> Problem:
    """One pydantic error as one problem."""
    tagged = tuple(part for part in error["loc"] if part != _KEY)
    location = _untagged(tagged)
    kind = error["type"]
    if kind.startswith("union_tag"):
        return _wrong_tag(error, location)
    if kind == "extra_forbidden":
        return Problem(location, _unknown_key(tagged, tree))
    if kind == "missing":
        return Problem(location, f"missing; expected {_expected(tagged, tree)}")
    refused = kind == REFUSED
    message = error["ctx"]["message"] if refused else f"expected {_expected(tagged, tree)}"
    given = location[-1] if error["loc"][-1:] == (_KEY,) else error["input"]
    if refused and isinstance(given, Mapping | BaseModel):
        return Problem(location, message)
    _, field = _place(tagged, tree)
    if refused and field is not None and field.annotation is bool:
        return Problem(location, f"got {str(given).lower()}; {message}")
    return Problem(location, f"got {_shown(given, kind, location, document)}; {message}")


def _untagged(location: Location) -> Location:
    """Without the tags of unions that pydantic puts into it: the file has no such levels."""
    if location[:1] == ("blends",) and location[2:3] and location[2] in METHODS:
        location = location[:2] + location[3:]
    if location[2:3] == ("model",) and location[3:4] and location[3] in MODEL_TAGS:
        location = location[:3] + location[4:]
    if location[2:3] == ("gate",) and location[3:4] and location[3] in GATES:
        location = location[:3] + location[4:]
    return location


def _wrong_tag(error: ErrorDetails, location: Location) -> Problem:
    """A blend without a known method, or a gate without a known rule."""
    key, known = ("by", list(GATES)) if location[-1:] == ("gate",) else ("method", list(METHODS))
    expected = f"expected one of {', '.join(known)}"
    if error["type"] == "union_tag_not_found":
        return Problem((*location, key), f"missing; {expected}")
    given = str(error["ctx"]["tag"])
    return Problem((*location, key), f"got {given!r}; {expected}{did_you_mean(given, known)}")


def _unknown_key(location: Location, tree: type[BaseModel]) -> str:
    model, _ = _place(location[:-1], tree)
    known = list(_fields(model))
    suggestion = did_you_mean(str(location[-1]), known)
    return f"unknown key; expected one of {', '.join(known)}{suggestion}"


def _shown(value: Any, kind: str, location: Location, document: Document) -> str:
    if isinstance(value, Mapping | BaseModel):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    node = document.node(location)
    if isinstance(value, str):
        text = repr(value if len(value) <= _MAX_SHOWN else value[:_MAX_SHOWN] + "…")
        if kind not in _WANTS_NUMBER or not _is_number(value):
            return text
        if isinstance(node, ScalarNode) and node.style is None:
            return f"{text}, which YAML reads as text (before an e, it wants a dot: 1.0e-3)"
        return f"{text}, which is text (write it without quotes)"
    wants_text = kind in _WANTS_TEXT or isinstance(
        value, bool
    )  # where a truth value is wrong, text is meant
    if wants_text and value is not None and (words := misread(node)):
        return f"{words} (put it in quotes if text is meant)"
    if value is None:
        return "nothing"
    return str(value).lower() if isinstance(value, bool) else str(value)[:_MAX_SHOWN]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _expected(location: Location, tree: type[BaseModel]) -> str:
    _, field = _place(location, tree)
    return (field.description if field else None) or "a mapping of keys to values"


def _place(
    location: Location, tree: type[BaseModel]
) -> tuple[type[BaseModel] | None, FieldInfo | None]:
    """The model found at a location, and the innermost field on the way to it."""
    model: type[BaseModel] | None = tree
    field: FieldInfo | None = None
    is_tagged = False  # the next part may be a union's tag
    at_key = False  # inside a mapping the next part is a name of the file's own, not a field
    for part in location:
        if at_key:
            at_key = False
            continue
        if model in METHODS.values() and part in METHODS:
            model = METHODS[str(part)]
            continue
        if is_tagged and part in GATES:
            is_tagged, model = False, GATES[str(part)]
            continue
        if isinstance(part, int) or part in MODEL_TAGS:  # a place in a list, or no level at all
            continue
        fields = _fields(model)
        if part not in fields:
            break
        field = fields[str(part)]
        is_tagged = part == "gate"
        model = _model_in(field.annotation)
        at_key = get_origin(field.annotation) is Mapping
    return model, field


def _fields(model: type[BaseModel] | None) -> dict[str, FieldInfo]:
    """A model's fields under the names that a blend file uses."""
    found = model.model_fields if model else {}
    return {info.alias or name: info for name, info in found.items()}


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_model_in, get_args(annotation))), None)
