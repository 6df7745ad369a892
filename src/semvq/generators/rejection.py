"""Rejection sampling: several candidates for every sample, of which the best-scored one is kept.

VQGAN (Esser et al. 2021) and ViT-VQGAN (Yu et al. 2022) reject by a classifier's score. Drawing and
scoring are plain callables.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from semvq.generators.base import Generator, evaluating
from semvq.generators.nar import evaluation_masks

MAX_CANDIDATES = 256
CANDIDATE_STRIDE = 2**24  # so that 256 candidates of every sample fit the noise's 2**32 indices

Score = Callable[[Tensor], Tensor]  # samples (B, ...) -> (B,), the higher the better


@dataclass(frozen=True)
class Kept:
    """What `keep_best` kept: samples (num, ...), their scores (num,), which candidates (num,)."""

    samples: Tensor
    scores: Tensor
    candidates: Tensor


def keep_best(draw: Callable[[int], Tensor], score: Score, num: int, candidates: int) -> Kept:
    """Of each of `num` samples the candidate with the highest score, the earliest among equals.

    `draw(c)` gives candidate c = 0, 1, ... of every sample, (num, ...); with one candidate that is
    what comes back. A score that is no number loses. Raises ValueError for candidates outside
    [1, MAX_CANDIDATES].
    """
    if not 1 <= candidates <= MAX_CANDIDATES:
        raise ValueError(
            f"keep_best: expected from 1 to {MAX_CANDIDATES} candidates, found {candidates}"
        )
    best = draw(0)
    assert len(best) == num, (len(best), num)
    scores = _number(score(best))
    chosen = torch.zeros(num, dtype=torch.int64, device=best.device)
    for candidate in range(1, candidates):
        drawn = draw(candidate)
        found = _number(score(drawn))
        better = found > scores
        best = torch.where(better.view(-1, *[1] * (best.ndim - 1)), drawn, best)
        scores = torch.where(better, found, scores)
        chosen = chosen.masked_fill(better, candidate)
    return Kept(best, scores, chosen)


def _number(scores: Tensor) -> Tensor:
    return scores.float().nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)


def candidate_index(index: int, num: int, candidate: int) -> int:
    """Noise index of that candidate of sample `index`, the first of `num`.

    Candidate 0 is the plain sample; c has the noise of sample index + c * 2**24, whatever the
    number of candidates. Raises ValueError where the samples would run into their own candidates.
    """
    if candidate and index + num > CANDIDATE_STRIDE:
        raise ValueError(
            f"keep_best: expected sample indices below {CANDIDATE_STRIDE}, found {index + num - 1}"
        )
    return index + candidate * CANDIDATE_STRIDE


def classifier_confidence(
    classifier: Callable[[Tensor], Tensor], images: Tensor, size: int = 224
) -> Tensor:
    """Largest softmax probability of a classifier (images to logits), (B,).

    images (B, 3, H, W) in [-1, 1], or a little beyond; resized to `size` pixels a side, bicubic.
    """
    resized = F.interpolate(
        images.float().clamp(-1, 1), size=(size, size), mode="bicubic", antialias=True
    )
    return classifier(resized.clamp(-1, 1)).softmax(-1).amax(-1)


@torch.no_grad()
def log_likelihood(generator: Generator, codes: Tensor, classes: Tensor | None = None) -> Tensor:
    """Mean log probability of each image's codes under the generator itself, (B,).

    AR: exact, teacher-forced. NAR: over the masks that `evaluation_loss` uses, a pseudo-likelihood.
    Either is minus what the image adds to `evaluation_loss`. codes int64 (B, h, w).
    """
    flat, nats_of = generator.flat(codes), generator.cross_entropy
    with evaluating(generator):
        if generator.causal:
            return -nats_of(generator(flat, classes), flat).nats.mean(1)
        masks, mask_code = evaluation_masks(flat.shape[1], flat.device), generator.config.num_codes
        nats = [
            nats_of(generator(flat.masked_fill(mask, mask_code), classes), flat).nats
            for mask in masks
        ]
    return -(torch.stack(nats, dim=1) * masks).sum((1, 2)) / masks.sum()
