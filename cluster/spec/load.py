"""From a file, a text or a mapping to a validated tree, or to one error listing every problem."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from cluster.errors import SpecError
from cluster.spec.lines import Document, NotYaml, read_yaml
from cluster.spec.messages import problem_of
from cluster.spec.model import ClusterSpec
from cluster.spec.recipe import RecipeSpec
from cluster.spec.references import Problem, dangling, rankers_of
from cluster.spec.values import BASE_FOLDER

MAX_PROBLEMS = 100  # told at one time

Tree = TypeVar("Tree", ClusterSpec, RecipeSpec)

_EXPECTED: dict[type, str] = {
    ClusterSpec: "version, members and blends",
    RecipeSpec: "merge_method and models",
}


def load_spec(path: str | Path) -> ClusterSpec:
    """Read a blend file; relative model folders start from its folder."""
    path = Path(path)
    return parse_spec(_read(path), path.absolute().parent, name=str(path))


def load_recipe(path: str | Path) -> RecipeSpec:
    """Read a merge recipe; relative model folders start from its folder."""
    path = Path(path)
    document = parse_document(_read(path), str(path))
    return _validate(RecipeSpec, document, path.absolute().parent, str(path))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SpecError("SPEC_NOT_FOUND", f"{path}: there is no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError("SPEC_UNREADABLE", f"{path}: cannot be read as text: {error}") from None


def parse_spec(text: str, base: Path | None = None, name: str = "<string>") -> ClusterSpec:
    """Parse YAML; relative model folders start from `base`, and errors call the text `name`."""
    return _validate(ClusterSpec, parse_document(text, name), base, name)


def parse_document(text: str, name: str) -> Document:
    """Parse YAML of any kind; raises SpecError, which calls the text `name`."""
    try:
        return read_yaml(text)
    except NotYaml as error:
        place = f"{name}:{error.line}:{error.column}" if error.line else name
        raise SpecError(
            "SPEC_NOT_YAML", f"{place}: not valid YAML: {error.message}", line=error.line
        ) from None


def parse_mapping(
    mapping: Mapping[str, Any], base: Path | None = None, name: str = "<mapping>"
) -> ClusterSpec:
    """Validate what `to_mapping` gave, or the arguments of a Serve application, with our errors."""
    return _validate(ClusterSpec, Document(dict(mapping), None, (), ()), base, name)


def _validate(tree: type[Tree], document: Document, base: Path | None, name: str) -> Tree:
    problems = list(zip(document.problem_lines, document.problems, strict=True))
    spec = None
    if document.data is None:
        problems.append((1, Problem((), f"is empty; expected {_EXPECTED[tree]}")))
    else:
        try:
            spec = tree.model_validate(document.data, context={BASE_FOLDER: base})
        except ValidationError as error:
            found = _dangling_in(document.data)[:MAX_PROBLEMS] if tree is ClusterSpec else []
            errors = [e for e in error.errors() if e["loc"] or tree is not ClusterSpec]
            found += [problem_of(e, tree, document) for e in errors[:MAX_PROBLEMS]]
            found = found or [Problem((), f"expected a mapping of {_EXPECTED[tree]}")]
            problems += [(document.line(problem.location), problem) for problem in found]
    if problems or spec is None:
        raise spec_error(problems, name, with_lines=document.root is not None)
    return spec


def spec_error(problems: list[tuple[int, Problem]], name: str, *, with_lines: bool) -> SpecError:
    """One error that lists all problems, but no more than anybody reads, each with its line."""
    problems = sorted(problems, key=lambda found: (found[0], found[1].field))[:MAX_PROBLEMS]
    lines = [
        ": ".join(
            filter(None, (f"{name}:{line}" if with_lines else name, problem.field, problem.message))
        )
        for line, problem in problems
    ]
    first_line, first = problems[0]
    return SpecError(
        "SPEC_INVALID",
        "\n".join(lines),
        field=first.field,
        line=first_line if with_lines else 0,
    )


def _dangling_in(data: Any) -> list[Problem]:
    """The names check of `ClusterSpec`, on data too broken for it to have run there."""

    def mapping(given: Any, key: str) -> Mapping[str, Any]:
        inner = given.get(key) if isinstance(given, Mapping) else None
        return inner if isinstance(inner, Mapping) else {}

    members = tuple(mapping(data, "members"))
    given = mapping(data, "blends")
    blends = {name: tuple(mapping(blend, "members")) for name, blend in given.items()}
    default = mapping(data, "serving").get("default_blend")
    return dangling(
        members,
        blends,
        default if isinstance(default, str) else None,
        tuple(mapping(data, "rankers")),
        {name: rankers_of(blend) for name, blend in given.items() if isinstance(blend, Mapping)},
    )
