"""What the faults cost, as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

from benchmarks.faults.faults import FAULTS
from benchmarks.faults.streams import NUM_TOKENS, Wait
from deployments.bench.markdown import table

_HEAD = ("fault", "runs", "noticed", "next token", "longest wait", "without the fault")


def as_markdown(machine: str, waits: Mapping[str, Sequence[Wait]]) -> str:
    """One row per fault, in seconds: median (lowest to highest)."""
    rows = [
        (
            fault.words,
            str(len(found)),
            spread([wait.noticed_s for wait in found if wait.noticed_s is not None]),
            spread([wait.next_token_s for wait in found if wait.next_token_s is not None]),
            spread([wait.longest_s for wait in found]),
            spread([wait.undisturbed_s for wait in found]),
        )
        for fault in FAULTS
        if (found := waits.get(fault.name))
    ]
    about = f"{machine}. Replies of {NUM_TOKENS} tokens, one at a time."
    return "\n".join([about, "", *table(_HEAD, rows)])


def spread(values_s: Sequence[float]) -> str:
    """Median, lowest and highest; nothing of nothing."""
    if not values_s:
        return ""
    return f"{median(values_s):.2f} ({min(values_s):.2f} to {max(values_s):.2f})"
