"""What distances need of a set of images: moments of all features, and some of them as they are."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from semvq.evaluation.frechet import Gaussian, Moments, with_root
from semvq.evaluation.subsets import KEPT_ROWS, places

KEPT = 10_000  # rows of features that are kept, for distances that need pairs of images
# as facts have it: figures of rows that were chosen in another way do not compare
KEPT_FACT = {"kept": f"all rows, or {KEPT} at random"}


@dataclass(frozen=True)
class FeatureSet:
    """Features of a set: their Gaussian, `KEPT` rows (M, D) of it, and where they come from.

    The rows are all of fewer, else a fixed random part, in order: files stand in the order of their
    classes, and the first ones alone would be of a few. `features` is None where only mean and
    covariance are known; `class_counts` where classes are not. `facts` None marks a file of another
    tool, which does not say what it depends on.
    """

    gaussian: Gaussian
    features: Tensor | None
    class_counts: Tensor | None
    facts: dict[str, Any] | None


class FeatureSums:
    """The same while the images stream by, each row counted as one image more."""

    def __init__(self, num_classes: int = 0) -> None:
        self.moments: Moments | None = None
        self._kept: list[Tensor] = []
        self._places: list[Tensor] = []  # of the kept rows; those that come first stay
        self._last = torch.iinfo(torch.int64).max  # a place that no longer matters is beyond it
        self.class_counts = torch.zeros(num_classes, dtype=torch.int64) if num_classes else None

    def add(self, features: Tensor, labels: Tensor | None = None) -> None:
        """Take in features (n, D) and their classes (n,)."""
        if self.moments is None:
            self.moments = Moments(features.shape[1])
        first = self.moments.num
        self.moments.add(features)
        self._keep(features, places(torch.arange(first, self.moments.num), KEPT_ROWS))
        if self.class_counts is not None and labels is not None:
            self.class_counts += torch.bincount(labels, minlength=len(self.class_counts))

    def _keep(self, features: Tensor, found: Tensor) -> None:
        near = found <= self._last
        self._kept.append(features[near.to(features.device)])
        self._places.append(found[near])
        if sum(map(len, self._places)) > 1.25 * KEPT:  # now and then: each time copies all
            self._shrink()

    def _shrink(self) -> None:
        rows, found = torch.cat(self._kept), torch.cat(self._places)
        if len(found) > KEPT:
            self._last = int(found.kthvalue(KEPT).values)
            near = found <= self._last
            rows, found = rows[near.to(rows.device)], found[near]
        self._kept, self._places = [rows], [found]

    def result(self, facts: dict[str, Any]) -> FeatureSet:
        """What was seen; ValueError for fewer than two images."""
        if self.moments is None:
            raise ValueError("expected at least 2 images, found none")
        self._shrink()
        (kept,) = self._kept
        gaussian = with_root(self.moments.gaussian(), kept)
        return FeatureSet(gaussian, kept, self.class_counts, facts | KEPT_FACT)
