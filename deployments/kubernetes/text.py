"""Objects as YAML that people read and diffs show: the same text for the same object, always."""

from __future__ import annotations

from typing import Any

import yaml


class _Dumper(yaml.SafeDumper):
    """Lists are indented, texts of several lines stand as they are, and nothing is an alias."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        return super().increase_indent(flow, False)

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style="|" if "\n" in text else None
    )


_Dumper.add_representer(str, _text)


def dump_yaml(item: Any) -> str:
    """One document, its keys in their own order."""
    return yaml.dump(item, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)
