"""What a blend file may write after `model:`, told apart by spelling alone.

    embedded:tiny-austen   ships inside this package
    fetched:smollm2        put under `models_home()` by `cuvee models fetch smollm2`
    ./mine  ../x  ~/y  /z  a local folder; a leading `./`, `../`, `~/` or `/` is what makes it one
    org/name               a repository on the Hugging Face hub

Spelling decides, never what happens to lie on the disk: the same file must mean the same thing on a
laptop, in a container and in a replica.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

EXPECTED = (
    "embedded:NAME, fetched:NAME, a local folder beginning with ./, ../, ~/ or /, "
    "or a hub repository ORG/NAME"
)

_PLAIN_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
_FOLDER_STARTS = ("./", "../", "~/", "/")


class ModelKind(Enum):
    """Where a model is to be found."""

    EMBEDDED = "embedded"
    FETCHED = "fetched"
    FOLDER = "folder"
    HUB = "hub"


@dataclass(frozen=True, slots=True)
class ModelReference:
    """A model by kind and name; the name of a folder is its path as written."""

    kind: ModelKind
    name: str

    @classmethod
    def parse(cls, text: str) -> ModelReference:
        """Raise ValueError, saying what would be right, when `text` is none of the four."""
        for kind in (ModelKind.EMBEDDED, ModelKind.FETCHED):
            if text.startswith(f"{kind.value}:"):
                name = text.removeprefix(f"{kind.value}:")
                if not _PLAIN_NAME.fullmatch(name):
                    raise ValueError(f"expected a plain name after {kind.value}:")
                return cls(kind, name)
        if text in (".", "..", "~") or text.startswith(_FOLDER_STARTS):
            return cls(ModelKind.FOLDER, text)
        if _HUB_ID.fullmatch(text):
            return cls(ModelKind.HUB, text)
        raise ValueError(f"expected {EXPECTED}")
