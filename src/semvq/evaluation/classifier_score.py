"""How sure a classifier is of every sample, and of how many classes in all (Salimans et al. 2016).

exp of the mean of KL(p(class | image) || p(class)). This is the Inception Score only where the
classifier is Inception-v3 with its full weights, logits included; else whoever reports it says
"classifier score" and names the classifier: values of two classifiers do not compare.
"""

import torch
from torch import Tensor

from semvq.evaluation.subsets import SCORE_SPLITS, ranks


class ClassifierScore:
    """The mean and spread of the score over `num_splits` random, but fixed, parts of the images.

    Parts are as large as in the original code: ranks s N / S to (s + 1) N / S, rounded down. There
    they follow the order of the images, and a part of files in the order of their classes has one
    class, a score of 1. Sums run in float64, image by image: the same to the last bit however the
    images come in batches.
    ValueError for fewer images than parts.
    """

    def __init__(self, num_images: int, num_splits: int = 10) -> None:
        if not 1 <= num_splits <= num_images:
            raise ValueError(
                f"expected at least one image per split, found {num_images} images and "
                f"{num_splits} splits"
            )
        self.num_images = num_images
        self._ranks = ranks(num_images, SCORE_SPLITS)
        self._ends = torch.tensor([s * num_images // num_splits for s in range(1, num_splits + 1)])
        self._entropies = torch.zeros(num_splits, dtype=torch.float64)
        self._totals: Tensor | None = None  # of the probabilities, (num_splits, K)
        self._num = 0

    def add(self, logits: Tensor) -> None:
        """Take in the next images' logits (n, K), or logarithms of probabilities; any device.

        ValueError for NaN, for another K, or for more images than were announced.
        """
        width = "K" if self._totals is None else str(self._totals.shape[1])
        if logits.ndim != 2 or width not in ("K", str(logits.shape[1])):
            raise ValueError(f"expected logits (N, {width}), found {tuple(logits.shape)}")
        if self._num + len(logits) > self.num_images:
            raise ValueError(
                f"expected {self.num_images} images, found {self._num + len(logits)} or more"
            )
        shares = logits.detach().cpu().double().softmax(1)
        if not bool(shares.isfinite().all()):
            raise ValueError("expected finite logits, found NaN or infinity")
        if self._totals is None:
            self._totals = shares.new_zeros(len(self._ends), shares.shape[1])
        numbers = self._ranks[self._num : self._num + len(shares)]
        splits = torch.bucketize(numbers, self._ends, right=True)
        self._totals.index_add_(0, splits, shares)
        self._entropies.index_add_(0, splits, torch.special.entr(shares).sum(1))
        self._num += len(shares)

    @property
    def is_complete(self) -> bool:
        """Whether all announced images are in: files that cannot be read are missing."""
        return self._num == self.num_images

    def result(self) -> tuple[float, float]:
        """Mean and standard deviation (population) over the splits; between 1 and K.

        ValueError before all images are in.
        """
        if self._totals is None or self._num < self.num_images:
            raise ValueError(f"expected {self.num_images} images, found {self._num}")
        sizes = self._ends.diff(prepend=self._ends.new_zeros(1))
        # the mean divergence from the marginal is its entropy less the mean entropy
        marginals = torch.special.entr(self._totals / sizes.unsqueeze(1)).sum(1)
        scores = (marginals - self._entropies / sizes).exp()
        return float(scores.mean()), float(scores.std(correction=0))
