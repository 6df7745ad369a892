"""Calibration: where a transformer says 30 percent, is it right in 30 percent of the cases?

Predictions are sorted by confidence (probability of the likeliest code) into 15 bins of equal
width, ((b - 1) / 15, b / 15]. The expected calibration error is the mean, weighted by the number in
each bin, of |accuracy - mean confidence| (Naeini et al. 2015; Guo et al. 2017). It is biased
upwards on few predictions: noise in a bin's accuracy never cancels.
"""

from typing import NamedTuple

import torch
from torch import Tensor

NUM_BINS = 15


class ReliabilityCurve(NamedTuple):
    """Per bin, from low to high confidence, each (15,); not a number where a bin is empty."""

    confidence: Tensor  # float64: mean confidence
    accuracy: Tensor  # float64: share that was right
    num: Tensor  # int64: how many predictions


class Reliability:
    """Sums of confidence and of right answers per bin, in float64, as predictions stream by."""

    def __init__(self) -> None:
        self.num = torch.zeros(NUM_BINS, dtype=torch.int64)
        self._confidence = torch.zeros(NUM_BINS, dtype=torch.float64)
        self._correct = torch.zeros(NUM_BINS, dtype=torch.int64)

    def add(self, confidence: Tensor, correct: Tensor) -> None:
        """Take in predictions: confidence in [0, 1] and correct (bool), of one shape, any device.

        ValueError for shapes that differ, or a confidence that is no probability.
        """
        if confidence.shape != correct.shape:
            raise ValueError(
                f"expected correct of shape {tuple(confidence.shape)} as confidence, found "
                f"{tuple(correct.shape)}"
            )
        share = confidence.detach().flatten().cpu().double()
        outside = ~((share >= 0) & (share <= 1))  # NaN too
        if outside.any():
            raise ValueError(f"expected confidence in [0, 1], found {float(share[outside][0])}")
        upper_edges = torch.arange(1, NUM_BINS, dtype=torch.float64) / NUM_BINS
        bins = torch.bucketize(share, upper_edges)  # an edge belongs to the bin below it
        right = correct.detach().flatten().cpu().bool()
        self.num += torch.bincount(bins, minlength=NUM_BINS)
        self._confidence += torch.bincount(bins, weights=share, minlength=NUM_BINS)
        self._correct += torch.bincount(bins[right], minlength=NUM_BINS)

    def merge(self, other: "Reliability") -> None:
        """Take in what another has seen; sums differ from those of one pass by rounding alone."""
        self.num += other.num
        self._confidence += other._confidence
        self._correct += other._correct

    def curve(self) -> ReliabilityCurve:
        """Mean confidence, accuracy and number of predictions of every bin."""
        return ReliabilityCurve(
            self._confidence / self.num, self._correct.double() / self.num, self.num.clone()
        )

    def expected_error(self) -> float:
        """Expected calibration error in [0, 1]; ValueError before the first prediction."""
        if not self.num.any():
            raise ValueError("expected predictions to judge calibration by, found none")
        gaps = (self._correct.double() - self._confidence).abs()
        return float(gaps.sum() / self.num.sum())


def expected_calibration_error(confidence: Tensor, correct: Tensor) -> float:
    """The error of predictions that are all there; see `Reliability.add`."""
    reliability = Reliability()
    reliability.add(confidence, correct)
    return reliability.expected_error()
