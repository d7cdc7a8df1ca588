"""What every part of the blend file has in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """Never changed once made, strict about types, and refusing keys that it does not know.

    Each field's `description` is what would be right there; it ends up in error messages ("got
    'fp8'; expected one of auto, …") and in the JSON schema, so it is written once. Checks between
    two fields sit on the later one, where they run even when other fields are wrong: one reading
    reports all.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
