"""A text on stdout that changes its style every 200 characters: Austen, King James, Bierce …

`python -m benchmarks.turns > turns.txt`; for `cuvee eval perplexity turns.txt --passage 600`.
"""

from __future__ import annotations

from cluster.models.corpus import STYLES
from cluster.models.held_out import EMBEDDED

_PIECE = 200  # characters
_NUM_PIECES = 56


def main() -> None:
    """Write the same text each time."""
    texts = [(EMBEDDED / "held_out" / f"{s}.txt").read_text(encoding="utf-8") for s in STYLES]
    for number in range(_NUM_PIECES):
        turn, place = divmod(number, len(texts))
        print(texts[place][turn * _PIECE : (turn + 1) * _PIECE], end="")


if __name__ == "__main__":
    main()
