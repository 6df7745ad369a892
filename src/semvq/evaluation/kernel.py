"""Kernel distance between two sets of features (KID, Binkowski et al. 2018): unbiased, with error.

The squared maximum mean discrepancy under the cubic kernel (x.y / D + 1)^3, over all pairs instead
of the usual random subsets: the same expectation, less spread, and no seed.
"""

import math
from typing import NamedTuple

from torch import Tensor

from semvq.evaluation.frechet import check_features

ROWS = 1024  # side of the square of a kernel matrix that is held at a time


class KernelDistance(NamedTuple):
    """The estimate, which can be negative where the sets are alike, and its standard error."""

    value: float
    error: float


def kernel_distance(x: Tensor, y: Tensor) -> KernelDistance:
    """Unbiased MMD^2 of features x (N, D) and y (M, D): Binkowski et al. 2018, Sec. 3 and 4.

    The error is what the value would spread by over new sets of these sizes, for sets alike and
    unlike; for alike ones some 15 % too large, as the rows' own share counts for zero at least.
    ValueError below four rows each, which the error takes.
    """
    check_pair(x, y, 4)
    x, y = x.double(), y.double()
    n, m = len(x), len(y)
    xx, yy, xy = _pairs_within(x), _pairs_within(y), _pairs_between(x, y)
    value = xx.rows.mean() + yy.rows.mean() - 2 * xy.rows.mean()
    # A U-statistic's variance is that of what each row adds, V1, plus that of what only pairs add,
    # V2 (Hoeffding 1948). Rows' observed means hold both, and V2 twice; V1 vanishes for equal sets.
    both = 4 * ((xx.rows - xy.rows).var() / n + (yy.rows - xy.columns).var() / m)
    pairs = 2 * xx.rest / (n * (n - 1)) + 2 * yy.rest / (m * (m - 1)) + 4 * xy.rest / (n * m)
    return KernelDistance(float(value), math.sqrt(max(float(both - pairs), float(pairs))))


def check_pair(x: Tensor, y: Tensor, least: int) -> None:
    """ValueError unless both are finite features of one width with at least `least` rows."""
    check_features(x)
    check_features(y)
    if x.shape[1] != y.shape[1]:
        raise ValueError(
            f"expected features of one width, found {x.shape[1]} and {y.shape[1]}; "
            "are they another network's?"
        )
    if min(len(x), len(y)) < least:
        found = f"{len(x)} and {len(y)}"
        raise ValueError(f"expected at least {least} rows of features, found {found}")


class _Pairs(NamedTuple):
    """A kernel matrix (N, M) told by its means: over every row, over every column, and `rest`.

    `rest` is the unbiased variance of what row and column do not explain (two-way analysis of
    variance, one value per cell).
    """

    rows: Tensor
    columns: Tensor
    rest: Tensor


def _pairs_between(x: Tensor, y: Tensor) -> _Pairs:
    n, m = len(x), len(y)
    rows, columns, squares = _sums(x, y)
    rows, columns = rows / m, columns / n
    rest = squares - n * m * rows.mean() ** 2
    rest = rest - m * _squared_deviations(rows) - n * _squared_deviations(columns)
    return _Pairs(rows, columns, (rest / ((n - 1) * (m - 1))).clamp_min(0))


def _pairs_within(x: Tensor) -> _Pairs:
    """Of a set with itself, without the diagonal: no row is paired with itself."""
    n = len(x)
    rows, _, squares = _sums(x, x)
    itself = (x.square().sum(1) / x.shape[1] + 1).pow(3)
    rows, squares = (rows - itself) / (n - 1), squares - itself.square().sum()
    # twice the sum over unordered pairs; a row's effect is its mean's deviation (n - 1) / (n - 2)
    effects = _squared_deviations(rows) * ((n - 1) / (n - 2)) ** 2
    rest = squares - n * (n - 1) * rows.mean() ** 2 - 2 * (n - 2) * effects
    return _Pairs(rows, rows, (rest / (n * (n - 3))).clamp_min(0))


def _sums(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sums of the kernel of x (N, D) with y (M, D): over y (N,), over x (M,), of all squares ()."""
    rows, columns = x.new_zeros(len(x)), x.new_zeros(len(y))
    squares = x.new_zeros(())
    for x_part, row in zip(x.split(ROWS), rows.split(ROWS)):
        for y_part, column in zip(y.split(ROWS), columns.split(ROWS)):
            kernel = ((x_part @ y_part.T) / x.shape[1] + 1).pow(3)
            row += kernel.sum(1)
            column += kernel.sum(0)
            squares += kernel.square().sum()
    return rows, columns, squares


def _squared_deviations(x: Tensor) -> Tensor:
    return (x - x.mean()).square().sum()
