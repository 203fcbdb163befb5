"""How sure a number is: bootstrap over training seeds and test pictures, and straight-line fits."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """An estimate with the bounds of its interval (95 %, percentiles of the bootstrap)."""

    value: float
    low: float
    high: float

    def shifted(self, by: float) -> Interval:
        """The same around another zero."""
        return Interval(self.value + by, self.low + by, self.high + by)

    def text(self, digits: int = 4) -> str:
        """ "0.100 to 0.200"."""
        return f"{self.low:.{digits}f} to {self.high:.{digits}f}"


def bootstrap(
    samples: Mapping[Any, np.ndarray],
    statistic: Callable[[Mapping[Any, float]], float],
    count: int = 2000,
    seed: int = 0,
    untrained: Collection[Any] = (),
) -> Interval:
    """A function of several means, with its interval.

    Seeds and pictures are drawn anew with replacement, for all samples with as many of them alike: cells of
    one seed see the same data in the same order, and all cells are measured on the same pictures. A sample of
    one seed borrows the relative spread over seeds of those with several (independent normal draws of its
    logarithm); where none has several, only the pictures vary. Few seeds give narrow intervals: of three the
    bootstrap knows two thirds of their variance.

    Args:
        samples: float (seeds, pictures) by key.
        statistic: of the mean of each sample, by key.
        count: of resamplings.
        untrained: keys of samples that no training run made: another seed would change nothing.

    Raises:
        ValueError: no sample, or an empty one.
    """
    if not samples or any(values.ndim != 2 or not values.size for values in samples.values()):
        raise ValueError("every sample must be (seeds, pictures) with at least one of both")
    rng = np.random.default_rng(seed)
    value = float(statistic({key: float(values.mean()) for key, values in samples.items()}))
    # How often each seed and each picture is drawn, as a share of its number; one table per size.
    shares: dict[tuple[int, int], np.ndarray] = {}
    drawn: dict[Any, np.ndarray] = {}
    spread = spread_over_seeds(list(samples.values()))
    for key, values in samples.items():
        for axis, size in enumerate(values.shape):
            if (axis, size) not in shares:
                shares[axis, size] = rng.multinomial(size, np.full(size, 1.0 / size), size=count) / size
        rows, columns = values.shape
        drawn[key] = ((shares[0, rows] @ values) * shares[1, columns]).sum(axis=1)
        if rows == 1 and key not in untrained:
            drawn[key] = drawn[key] * np.exp(spread * rng.standard_normal(count))
    found = [statistic({key: float(means[i]) for key, means in drawn.items()}) for i in range(count)]
    tail = (1.0 - LEVEL) / 2
    low, high = np.nanquantile(found, [tail, 1.0 - tail])
    return Interval(value, float(low), float(high))


def spread_over_seeds(samples: Sequence[np.ndarray]) -> float:
    """Standard deviation over seeds of the logarithm of a sample's mean, pooled over the samples (seeds,
    pictures) of several seeds; 0 where there is none, or where a mean is not positive."""
    means = [values.mean(axis=1) for values in samples if len(values) > 1]
    if not means or any((mean <= 0).any() for mean in means):
        return 0.0
    squares = sum(float(((np.log(m) - np.log(m).mean()) ** 2).sum()) for m in means)
    return math.sqrt(squares / sum(len(m) - 1 for m in means))


def fit_line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Slope and intercept of the least-squares line.

    Raises:
        ValueError: fewer than two different x.
    """
    if len(set(x)) < 2:
        raise ValueError("a line needs two different x")
    slope, intercept = np.polyfit(np.asarray(x, float), np.asarray(y, float), 1)
    return float(slope), float(intercept)


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation; None for a single value."""
    n = len(values)
    mean = math.fsum(values) / n
    return mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1)) if n > 1 else None
