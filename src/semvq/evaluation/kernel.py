"""Kernel distance between two sets of features (KID, Binkowski et al. 2018): unbiased, with error.

The squared maximum mean discrepancy under the cubic kernel (x.y / D + 1)^3, over all pairs instead
of the usual random subsets: the same expectation, less spread, and no seed.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

ROWS = 1024  # of a kernel matrix that are held at a time


class KernelDistance(NamedTuple):
    """The estimate, which can be negative where the sets are alike, and its standard error."""

    value: float
    error: float


def kernel_distance(x: Tensor, y: Tensor) -> KernelDistance:
    """Unbiased MMD^2 of features x (N, D) and y (M, D); ValueError below two rows each.

    The error is that of the first term of the U-statistic's variance (Gretton et al. 2012): the
    spread of every row's own contribution.
    """
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"expected features of one width, found {x.shape[1]} and {y.shape[1]}")
    if min(len(x), len(y)) < 2:
        raise ValueError(f"expected at least 2 rows of features, found {len(x)} and {len(y)}")
    x, y = x.double(), y.double()
    n, m = len(x), len(y)
    within_x = (_row_sums(x, x) - _kernel_of_itself(x)) / (n - 1)
    within_y = (_row_sums(y, y) - _kernel_of_itself(y)) / (m - 1)
    x_to_y, y_to_x = _row_sums(x, y) / m, _row_sums(y, x) / n
    value = within_x.mean() + within_y.mean() - 2 * x_to_y.mean()
    variance = 4 * ((within_x - x_to_y).var() / n + (within_y - y_to_x).var() / m)
    return KernelDistance(float(value), math.sqrt(float(variance)))


def _row_sums(x: Tensor, y: Tensor) -> Tensor:
    """Sum over y of the kernel of every row of x with it: (N,)."""
    return torch.cat([((part @ y.T) / x.shape[1] + 1).pow(3).sum(1) for part in x.split(ROWS)])


def _kernel_of_itself(x: Tensor) -> Tensor:
    return (x.square().sum(1) / x.shape[1] + 1).pow(3)
