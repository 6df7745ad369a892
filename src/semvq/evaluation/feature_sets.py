"""What distances need of a set of images: moments of all features, and some of them as they are."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from semvq.evaluation.frechet import Gaussian, Moments, with_root

KEPT = 10_000  # rows of features that are kept, for distances that need pairs of images


@dataclass(frozen=True)
class FeatureSet:
    """Features of a set: their Gaussian, the first `KEPT` rows (M, D), and where they come from.

    `features` is None where only mean and covariance are known; `class_counts` where classes are
    not. `facts` None marks a file of another tool, which does not say what it depends on.
    """

    gaussian: Gaussian
    features: Tensor | None
    class_counts: Tensor | None
    facts: dict[str, Any] | None


class FeatureSums:
    """The same while the images stream by."""

    def __init__(self, num_classes: int = 0) -> None:
        self.moments: Moments | None = None
        self._kept: list[Tensor] = []
        self.class_counts = torch.zeros(num_classes, dtype=torch.int64) if num_classes else None

    def add(self, features: Tensor, labels: Tensor | None = None) -> None:
        """Take in features (n, D) and their classes (n,)."""
        if self.moments is None:
            self.moments = Moments(features.shape[1])
        missing = KEPT - self.moments.num
        if missing > 0:
            self._kept.append(features[:missing])
        self.moments.add(features)
        if self.class_counts is not None and labels is not None:
            self.class_counts += torch.bincount(labels, minlength=len(self.class_counts))

    def result(self, facts: dict[str, Any]) -> FeatureSet:
        """What was seen; ValueError for fewer than two images."""
        if self.moments is None:
            raise ValueError("expected at least 2 images, found none")
        kept = torch.cat(self._kept)
        return FeatureSet(with_root(self.moments.gaussian(), kept), kept, self.class_counts, facts)
