"""Fréchet distance between Gaussians fitted to two sets of features (FID, Heusel et al. 2017).

Moments stream by in float64 and can be merged. The trace of the square root of the product of two
covariances is the sum of singular values of the product of their roots: real, and never negative.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 512  # rows that are added up in one matrix product


@dataclass(frozen=True)
class Gaussian:
    """Mean (D,) and covariance (D, D), float64, of `num` rows; divided by num - 1."""

    mean: Tensor
    covariance: Tensor
    num: int


class Moments:
    """Sums of rows (N, D) and of their outer products, in float64, as the rows stream by.

    Rows are added in blocks of `BLOCK`, whatever pieces they come in: the sums are the same, to the
    last bit, for every size of batch. Memory: 8 D^2 + 8 D `BLOCK` bytes.
    """

    def __init__(self, dim: int) -> None:
        self.num = 0
        self._total = torch.zeros(dim, dtype=torch.float64)
        self._outer = torch.zeros(dim, dim, dtype=torch.float64)
        self._waiting: list[Tensor] = []

    def add(self, rows: Tensor) -> None:
        """Take in rows (n, D), on any device; ValueError for another width, or for NaN or inf."""
        dim = len(self._total)
        if rows.ndim != 2 or rows.shape[1] != dim:
            raise ValueError(f"expected features (N, {dim}), found {tuple(rows.shape)}")
        if not bool(rows.isfinite().all()):
            raise ValueError("expected finite features, found NaN or infinity")
        self._waiting.append(rows.detach().cpu().double())
        self.num += len(rows)
        if sum(map(len, self._waiting)) >= BLOCK:
            blocks = torch.cat(self._waiting).split(BLOCK)
            whole = [b for b in blocks if len(b) == BLOCK]
            for block in whole:
                self._add_block(block)
            self._waiting = list(blocks[len(whole) :])

    def merge(self, other: "Moments") -> None:
        """Take in what another has seen; sums differ from those of one pass by rounding alone."""
        self._flush()
        other._flush()
        self.num += other.num
        self._total += other._total
        self._outer += other._outer

    def gaussian(self) -> Gaussian:
        """What was seen, as mean and covariance; ValueError for fewer than two rows."""
        if self.num < 2:
            raise ValueError(f"expected at least 2 rows of features, found {self.num}")
        total, outer = self._total, self._outer
        if self._waiting:
            rest = torch.cat(self._waiting)
            total, outer = total + rest.sum(0), outer + rest.T @ rest
        mean = total / self.num
        covariance = (outer - self.num * mean.outer(mean)) / (self.num - 1)
        return Gaussian(mean, covariance, self.num)

    def _flush(self) -> None:
        if self._waiting:
            self._add_block(torch.cat(self._waiting))
            self._waiting = []

    def _add_block(self, rows: Tensor) -> None:
        self._total += rows.sum(0)
        self._outer.addmm_(rows.T, rows)


def fit(features: Tensor) -> Gaussian:
    """Mean and covariance of features (N, D)."""
    moments = Moments(features.shape[1])
    moments.add(features)
    return moments.gaussian()


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) (Heusel et al. 2017, Eq. 6); at least 0.

    Symmetric to rounding, and finite for covariances of any rank. ValueError for unequal widths.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(
            f"expected features of one width, found {len(a.mean)} and {len(b.mean)}; "
            "are they another network's?"
        )
    between = (a.mean - b.mean).square().sum()
    spread = a.covariance.trace() + b.covariance.trace()
    shared = torch.linalg.svdvals(_root(a.covariance).T @ _root(b.covariance)).sum()
    return max(float(between + spread - 2 * shared), 0.0)


def _root(covariance: Tensor) -> Tensor:
    """R (D, rank) with R R^T = covariance; directions below rounding are left out."""
    values, vectors = torch.linalg.eigh(covariance.double())
    kept = values > len(values) * torch.finfo(torch.float64).eps * values[-1].clamp_min(0)
    return vectors[:, kept] * values[kept].sqrt()
