"""YAML text to plain data, remembering where everything stood.

PyYAML's safe loader builds the data; this module keeps its node graph to find lines, and refuses
what the loader lets pass: keys written twice, and keys that YAML's own rules turn into something
other than text (`no`, `1`, `2024-01-01`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from cluster.spec.references import Location, Problem

MAX_BYTES = 1 << 20
MAX_NODES = 100_000  # with every alias written out
MAX_NUMBER_LENGTH = 100  # of text that YAML takes for something else; some take it long to read

_TEXT = "tag:yaml.org,2002:str"
_MERGE = "tag:yaml.org,2002:merge"
_READ_AS = {
    "tag:yaml.org,2002:bool": "true or false",
    "tag:yaml.org,2002:int": "a number",
    "tag:yaml.org,2002:float": "a number",
    "tag:yaml.org,2002:null": "nothing",
    "tag:yaml.org,2002:timestamp": "a date",
}


class NotYaml(Exception):
    """The text cannot be read at all; `line` and `column` count from 1, 0 where unknown."""

    def __init__(self, message: str, line: int = 0, column: int = 0) -> None:
        super().__init__(message)
        self.message = message
        self.line = line
        self.column = column


@dataclass(frozen=True, slots=True)
class Document:
    """A YAML document: its data, its nodes, and what is wrong with its keys."""

    data: Any
    root: yaml.Node | None
    problems: tuple[Problem, ...]
    problem_lines: tuple[int, ...]  # one per problem: two equal keys have one location, two lines

    def node(self, location: Location) -> yaml.Node | None:
        """The value at a location, or None where there is none."""
        found = self.root
        for part in location:
            pair = _pair(found, part)
            if pair is None:
                return None
            found = pair[1]
        return found

    def line(self, location: Location) -> int:
        """The line of the key at a location, or of the nearest thing around it that exists."""
        found, line = self.root, 1
        for part in location:
            pair = _pair(found, part)
            if pair is None:
                break
            line = pair[0].start_mark.line + 1
            found = pair[1]
        return line


def read_yaml(text: str) -> Document:
    """One document of safe YAML; raises `NotYaml`."""
    if len(text) > MAX_BYTES:
        raise NotYaml(f"longer than {MAX_BYTES} characters, which no blend file is")
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        if root is not None:
            _check_size(root)
        problems = list(_check_keys(root)) if root is not None else []
        data = loader.construct_document(root) if root is not None else None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        words = error.problem or "not readable"
        if error.context and error.problem:
            words = f"{error.problem} ({error.context})"
        raise NotYaml(words, *((mark.line + 1, mark.column + 1) if mark else ())) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        column = error.position - (text.rfind("\n", 0, error.position) + 1) + 1
        raise NotYaml(f"the character {error.character:#x} is not allowed", line, column) from None
    except RecursionError:
        raise NotYaml("nested too deeply, or containing itself") from None
    except (ValueError, LookupError, AttributeError, TypeError) as error:  # such as 2024-99-99, or
        # one whose tag is not what it is: PyYAML then fails in many ways
        raise NotYaml(f"a value cannot be read: {error}") from None
    return Document(
        data, root, tuple(problem for problem, _ in problems), tuple(line for _, line in problems)
    )


def misread(node: yaml.Node | None) -> str:
    """`no, which YAML reads as true or false`: for unquoted text taken for another type."""
    if not isinstance(node, yaml.ScalarNode) or node.style is not None or node.tag not in _READ_AS:
        return ""
    return f"{node.value}, which YAML reads as {_READ_AS[node.tag]}"


def _pair(node: yaml.Node | None, part: str | int) -> tuple[yaml.Node, yaml.Node] | None:
    if isinstance(node, yaml.MappingNode):
        found = None
        for key, value in node.value:  # after merging, a mapping's own keys come last and win
            if key.value == str(part):
                found = (key, value)
        return found
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        return node.value[part], node.value[part]
    return None


def _check_size(root: yaml.Node) -> None:
    """Refuse a short text that stands for a large thing: aliases of aliases, numbers beyond use."""
    sizes: dict[int, int] = {}

    def size_of(node: yaml.Node) -> int:
        if id(node) not in sizes:
            sizes[id(node)] = MAX_NODES + 1  # until it is known: then it does not contain itself
            sizes[id(node)] = 1 + sum(map(size_of, _children(node)))
        return sizes[id(node)]

    if size_of(root) > MAX_NODES:
        raise NotYaml(f"stands for more than {MAX_NODES} values, or contains itself")


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield key
            yield value
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value
    elif node.tag in _READ_AS and len(node.value) > MAX_NUMBER_LENGTH:
        raise yaml.MarkedYAMLError(
            problem=f"{_READ_AS[node.tag]} of more than {MAX_NUMBER_LENGTH} characters",
            problem_mark=node.start_mark,
        )


def _check_keys(root: yaml.Node) -> Iterator[tuple[Problem, int]]:
    """Report doubled keys and keys that are not text; the latter go on as the text they look like.

    Each node is visited once, however many aliases lead to it.
    """
    seen: set[int] = set()
    stack: list[tuple[Location, yaml.Node]] = [((), root)]
    while stack:
        location, node = stack.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            stack.extend(((*location, i), item) for i, item in enumerate(node.value))
        if not isinstance(node, yaml.MappingNode):
            continue
        first_lines: dict[str, int] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(
                    problem="a key must be text", problem_mark=key.start_mark
                )
            line = key.start_mark.line + 1
            here = (*location, key.value)
            stack.append((here, value))
            if key.tag == _MERGE:
                continue
            if words := _READ_AS.get(key.tag):
                yield Problem(here, f"YAML reads this key as {words}; put it in quotes"), line
                key.tag = _TEXT
            if key.value in first_lines:
                first = first_lines[key.value]
                yield Problem(here, f"written twice; the first is on line {first}"), line
            first_lines.setdefault(key.value, line)
