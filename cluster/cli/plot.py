"""Bits per byte as one self-contained picture: bars by file; no script, labels beside colours."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

FORMATS = (".html", ".svg")

_LONGEST_BAR = 420  # these are pixels
_BAR_STEP = 22
_PANEL_STEP = 40
_CHARACTER = 7.5
_PAGE = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"/><title>Bits per byte</title>
<style>:root {{ color-scheme: light dark; }} body {{ margin: 0; }}
@media (prefers-color-scheme: dark) {{ body {{ background: #181818; }} }}</style></head>
<body>
{svg}
</body>
</html>
"""


@dataclass(frozen=True, slots=True)
class Voice:
    """A member or a blend."""

    kind: str
    name: str


def write_plot(file: Path, panels: Mapping[str, Mapping[Voice, float]]) -> None:
    """Panels by name, each with the bits per byte of every voice; inf is said, and has no bar."""
    svg = make_svg(panels)
    file.write_text(_PAGE.format(svg=svg) if file.suffix == ".html" else svg, encoding="utf-8")


def make_svg(panels: Mapping[str, Mapping[Voice, float]]) -> str:
    """The picture; a voice has one colour in all panels."""
    from jinja2 import Environment

    from cluster.cli.paint import PALETTE

    voices = list(dict.fromkeys(voice for bits in panels.values() for voice in bits))
    colours = {voice: PALETTE[i % len(PALETTE)] for i, voice in enumerate(voices)}
    finite = [b for bits in panels.values() for b in bits.values() if math.isfinite(b)]
    scale = _LONGEST_BAR / max(finite, default=1.0)
    longest = max(len(f"{voice.name} {voice.kind}") for voice in voices)
    left = round(30 + _CHARACTER * longest)
    y, drawn = 28, []
    for name, bits in panels.items():
        y += _PANEL_STEP
        drawn.append(_panel(name, bits, y, scale, colours))
        y += _BAR_STEP * len(bits)
    longest_name = max(map(len, panels))
    width = round(max(left + _LONGEST_BAR + 200, 40 + _CHARACTER * longest_name))
    template = (files("cluster.cli") / "plot.svg").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(
        width=width, height=y + 30, left=left, panels=drawn
    )


def _panel(
    name: str, bits: Mapping[Voice, float], y: int, scale: float, colours: Mapping[Voice, str]
) -> dict[str, object]:
    return {
        "name": "".join(char if char.isprintable() else "�" for char in name),  # XML has no others
        "y": y,
        "end": y + 8 + _BAR_STEP * len(bits),
        "bars": [
            {
                "name": voice.name,
                "kind": voice.kind,
                "y": y + 10 + _BAR_STEP * row,
                "length": round(scale * value, 1) if math.isfinite(value) else None,
                "colour": colours[voice],
                "words": words_of(value),
            }
            for row, (voice, value) in enumerate(bits.items())
        ],
    }


def words_of(bits: float) -> str:
    """A number of bits per byte, or why there is none."""
    return f"{bits:.4f}" if math.isfinite(bits) else "∞: it excludes some token"
