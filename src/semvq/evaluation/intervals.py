"""How far a figure may be off: half-widths of 95 % intervals, by resampling the images.

Images are drawn again with replacement (Efron's bootstrap); the spread of the figure over the
draws times 1.96 is the half-width. The draws are the same for every tokenizer, and so for every run
of the program. They say nothing of another training seed.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from semvq.evaluation.feature_sets import FeatureSet
from semvq.evaluation.frechet import fit, frechet_distance
from semvq.metrics import entropy

NUM_DRAWS, NUM_SLOW_DRAWS = 1000, 20  # of means; of figures that take a second each
MAX_IMAGES = 2000  # with more, drawing distances again takes hours
_HALF_WIDTH = 1.96


def mean_interval(values: Tensor) -> float:
    """Half-width for the mean of one figure per image (N,)."""
    values = values.double()
    return _half_width([values[rows].mean() for rows in _draws(len(values), NUM_DRAWS)])


def frechet_interval(real: FeatureSet, fake: FeatureSet) -> float | None:
    """Half-width for the Fréchet distance of two sets; None where it cannot be had in minutes.

    Image i of one set belongs to image i of the other (its reconstruction or prediction), so both
    are drawn together.
    """
    x, y = real.features, fake.features
    if x is None or y is None or len(x) != len(y):
        return None
    if not len(x) == real.gaussian.num == fake.gaussian.num <= MAX_IMAGES:
        return None

    def distance(rows: Tensor) -> float:
        return frechet_distance(fit(x[rows]), fit(y[rows]))

    return _of_draws(distance, len(x))


def sample_interval(reference: FeatureSet, samples: FeatureSet) -> float | None:
    """Half-width for the Fréchet distance of samples to a fixed reference; None as above."""
    y = samples.features
    if y is None or not len(y) == samples.gaussian.num <= MAX_IMAGES:
        return None
    return _of_draws(lambda rows: frechet_distance(reference.gaussian, fit(y[rows])), len(y))


def perplexity_interval(codes: Tensor, num_codes: int) -> float | None:
    """Half-width for the perplexity of codes (N, h, w); None as above."""
    if len(codes) > MAX_IMAGES:
        return None
    flat = codes.flatten(1)

    def perplexity(rows: Tensor) -> float:
        counts = torch.bincount(flat[rows].flatten(), minlength=num_codes)
        return float(np.exp(entropy(counts)))

    return _of_draws(perplexity, len(codes))


def _of_draws(figure: Callable[[Tensor], float], num_images: int) -> float:
    return _half_width([figure(rows) for rows in _draws(num_images, NUM_SLOW_DRAWS)])


def _draws(num_images: int, num_draws: int) -> Iterator[Tensor]:
    rng = np.random.default_rng(0)
    for _ in range(num_draws):
        yield torch.from_numpy(rng.integers(0, num_images, num_images))


def _half_width(figures: list) -> float:
    return _HALF_WIDTH * float(torch.tensor([float(f) for f in figures]).double().std())
