"""Fréchet distance between Gaussians fitted to two sets of features (FID, Heusel et al. 2017).

Moments stream by in float64 and can be merged. The trace of the square root of the product of two
covariances is the sum of singular values of the product of their roots: real, and never negative.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 512  # rows that are added up in one matrix product


@dataclass(frozen=True, eq=False)
class Gaussian:
    """Mean (D,) and covariance (D, D) of `num` rows, divided by num - 1; finite, or ValueError.

    `thin` (D, r) is a root as below of fewer columns, where one is known: from fewer rows than
    columns it costs a fraction of what has to be done without.
    """

    mean: Tensor
    covariance: Tensor
    num: int
    thin: Tensor | None = None

    def __post_init__(self) -> None:
        dim, shape = len(self.mean), tuple(self.covariance.shape)
        if shape != (dim, dim):
            raise ValueError(f"expected a covariance ({dim}, {dim}), found {shape}")
        if not bool(self.mean.isfinite().all() and self.covariance.isfinite().all()):
            raise ValueError("expected a finite mean and covariance, found NaN or infinity")

    @cached_property
    def root(self) -> Tensor:
        """R (D, rank) with R R^T = covariance; directions below rounding are left out.

        A rounding error's root is no rounding error: one for every direction that few rows leave
        empty would make sets look closer than they are. Computed once: a reference meets many sets.
        """
        if self.thin is not None:
            return self.thin
        values, vectors = torch.linalg.eigh(self.covariance.double())
        kept = values > len(values) * torch.finfo(torch.float64).eps * values[-1].clamp_min(0)
        return vectors[:, kept] * values[kept].sqrt()


class Moments:
    """Mean and spread of rows (N, D), in float64, as the rows stream by.

    Rows are added in blocks of `BLOCK`, whatever pieces they come in: the result is the same, to
    the last bit, for every size of batch. Memory: a few times 8 D^2, and 8 D `BLOCK`, bytes.
    """

    def __init__(self, dim: int) -> None:
        self._block = torch.empty(BLOCK, dim, dtype=torch.float64)
        self._sums = _sums_of(self._block[:0])
        self._waiting = 0  # rows of the block that are filled

    @property
    def num(self) -> int:
        """Rows seen so far."""
        return self._sums.num + self._waiting

    def add(self, rows: Tensor) -> None:
        """Take in rows (n, D), on any device; ValueError for another width, or for NaN or inf."""
        check_features(rows, len(self._sums.mean))
        rows = rows.detach()
        while len(rows) > 0:
            room = len(self._block) - self._waiting
            part, rows = rows[:room], rows[room:]
            self._block[self._waiting : self._waiting + len(part)] = part
            self._waiting += len(part)
            if self._waiting == len(self._block):
                self._sums, self._waiting = self._all(), 0

    def merge(self, other: "Moments") -> None:
        """Take in what another has seen; differs from one pass over all rows by rounding alone."""
        found = other._all()
        if found.mean.shape != self._sums.mean.shape:
            dims = f"{len(self._sums.mean)}, found {len(found.mean)}"
            raise ValueError(f"expected moments of features of width {dims}")
        self._sums = _together(self._sums, found)  # what waits here goes on waiting

    def gaussian(self) -> Gaussian:
        """What was seen, as mean and covariance; ValueError for fewer than two rows."""
        if self.num < 2:
            raise ValueError(f"expected at least 2 rows of features, found {self.num}")
        num, mean, scatter = self._all()
        return Gaussian(mean, scatter / (num - 1), num)

    def _all(self) -> "_Sums":
        return _together(self._sums, _sums_of(self._block[: self._waiting]))


class _Sums(NamedTuple):
    """Of `num` rows their mean (D,), and the sum of outer products of deviations from it (D, D).

    Not raw sums of products: where the mean is 1000 times the deviations, the difference of squares
    loses six digits more, and with them which directions have no spread at all.
    """

    num: int
    mean: Tensor
    scatter: Tensor


def _sums_of(rows: Tensor) -> _Sums:
    mean = rows.sum(0) / max(len(rows), 1)
    centred = rows - mean
    return _Sums(len(rows), mean, centred.T @ centred)


def _together(a: _Sums, b: _Sums) -> _Sums:
    """Of the rows of both (Chan, Golub and LeVeque 1979)."""
    num = a.num + b.num
    share, step = b.num / max(num, 1), b.mean - a.mean
    scatter = a.scatter + b.scatter + step.outer(step) * (a.num * share)
    return _Sums(num, a.mean + step * share, scatter)


def check_features(features: Tensor, dim: int | None = None) -> None:
    """ValueError unless `features` are (N, dim), any width where dim is None, and finite."""
    if features.ndim != 2 or dim not in (None, features.shape[1]):
        shape = tuple(features.shape)
        raise ValueError(
            f"expected features (N, {dim or 'D'}), found {shape}; are they another network's?"
        )
    if not bool(features.isfinite().all()):
        raise ValueError("expected finite features, found NaN or infinity")


def fit(features: Tensor) -> Gaussian:
    """Mean and covariance of features (N, D)."""
    check_features(features)
    moments = Moments(features.shape[1])
    moments.add(features)
    return with_root(moments.gaussian(), features)


def with_root(gaussian: Gaussian, features: Tensor) -> Gaussian:
    """The same, with a thin root where the rows (N, D) it was fitted to are few."""
    if len(features) != gaussian.num or len(features) > features.shape[1]:
        return gaussian
    centred = features.detach().cpu().double() - gaussian.mean
    return replace(gaussian, thin=centred.T / (gaussian.num - 1) ** 0.5)


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) (Heusel et al. 2017, Eq. 6); at least 0.

    Symmetric to rounding, and finite for covariances of any rank. ValueError for unequal widths.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(
            f"expected features of one width, found {len(a.mean)} and {len(b.mean)}; "
            "are they another network's?"
        )
    between = (a.mean.double() - b.mean.double()).square().sum()
    spread = a.covariance.double().trace() + b.covariance.double().trace()
    # the eigenvalues of C_a C_b are the squared singular values of R_a^T R_b
    shared = torch.linalg.svdvals(a.root.T @ b.root).sum()
    return max(float(between + spread - 2 * shared), 0.0)
