"""Examples for the learned gates of benchmarks/evaluation.yaml, as JSONL on stdout.

`python -m benchmarks.gate_examples > examples.jsonl`: prompts of all three styles, each with what
follows it. They come from the part of the held-out texts that the evaluation does not measure.
"""

from __future__ import annotations

import json
import random

from cluster.models.corpus import STYLES
from cluster.models.held_out import EMBEDDED

_BEGIN = 8000  # characters before it are the evaluation's
_PROMPT, _REPLY = 200, 160  # characters
_PER_STYLE = 150


def main() -> None:
    """Write the same lines each time."""
    rng = random.Random(0)
    lines = []
    for style in STYLES:
        text = (EMBEDDED / "held_out" / f"{style}.txt").read_text(encoding="utf-8")
        for _ in range(_PER_STYLE):
            begin = rng.randrange(_BEGIN, len(text) - _PROMPT - _REPLY)
            end = begin + _PROMPT
            lines.append({"prompt": text[begin:end], "reply": text[end : end + _REPLY]})
    rng.shuffle(lines)
    for line in lines:
        print(json.dumps(line, ensure_ascii=False))


if __name__ == "__main__":
    main()
