"""Whether a measure stays where it is: a line through its samples, judged. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median

_NUM_BLOCKS = 12  # neighbours are alike; means over so many blocks are nearly independent
_NUM_ERRORS = 2.0  # standard errors of the slope that are put down to noise


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a measure may grow by over the time fitted: a share of itself, or so much if more."""

    share: float
    amount: float  # in the measure's unit


@dataclass(frozen=True, slots=True)
class Trend:
    """The line through what was sampled after the warm-up."""

    level: float  # the median
    slope_per_s: float
    slope_error_per_s: float  # one standard error
    duration_s: float

    @property
    def growth(self) -> float:
        """What the line gains over the time fitted."""
        return self.slope_per_s * self.duration_s

    @property
    def noise(self) -> float:
        """How much of the growth may be chance."""
        return _NUM_ERRORS * self.slope_error_per_s * self.duration_s

    def is_flat(self, allowance: Allowance) -> bool:
        """Whether what is surely growth stays within the allowance.

        A line that is too noisy to tell is not flat: the noise must stay within it as well.
        """
        allowed = max(allowance.share * abs(self.level), allowance.amount)
        return self.growth - self.noise <= allowed and self.noise <= 2 * allowed


def trend_of(samples: Sequence[tuple[float, float]], warm_up_s: float) -> Trend:
    """Fit a line by least squares to (seconds, value), from the end of the warm-up on.

    Raises ValueError for fewer than three samples after it.
    """
    kept = [(time_s, value) for time_s, value in samples if time_s >= warm_up_s]
    if len(kept) < 3:
        raise ValueError(f"got {len(kept)} samples after the warm-up; expected at least 3")
    blocks = _block_means(kept)
    slope, error = _fitted(blocks)
    level = median(value for _, value in kept)
    return Trend(level, slope, error, kept[-1][0] - kept[0][0])


def _block_means(samples: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    num_blocks = min(_NUM_BLOCKS, len(samples))
    edges = [round(number * len(samples) / num_blocks) for number in range(num_blocks + 1)]
    blocks = [samples[begin:end] for begin, end in pairwise(edges)]
    return [(fmean(t for t, _ in block), fmean(v for _, v in block)) for block in blocks]


def _fitted(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The slope and its standard error."""
    mean_x, mean_y = fmean(x for x, _ in points), fmean(y for _, y in points)
    spread = math.fsum((x - mean_x) ** 2 for x, _ in points)
    slope = math.fsum((x - mean_x) * (y - mean_y) for x, y in points) / spread
    rest = math.fsum((y - mean_y - slope * (x - mean_x)) ** 2 for x, y in points)
    return slope, math.sqrt(rest / (len(points) - 2) / spread)
