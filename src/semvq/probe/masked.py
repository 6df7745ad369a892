"""The probe of a masked transformer: the top-1 code at masked positions, given the others.

The twin of `teacher_forcing` for NAR (MaskGIT): hide a share of an image's true codes, predict them
in one pass, and decode true and predicted codes together. At ratio 1 only the class is left.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from semvq.generators.base import Generator, evaluating
from semvq.generators.nar import NARTransformer
from semvq.generators.noise import PROBE_MASKS, Noise
from semvq.generators.sampling import ranks
from semvq.probe.teacher_forcing import CodeLogits, Prediction, check_codes, judge

RATIOS = (0.25, 0.5, 0.75, 1.0)
MASKED = -1  # stands for a hidden code in what a plain callable is given


class MaskedPrediction(NamedTuple):
    """Figures, and where the codes were masked; take means over `masked` alone.

    A code that was shown is taken as known: itself, right, 0 nats, probability 1. So
    `prediction.codes` decodes to the image with its masked part predicted.
    """

    prediction: Prediction  # each (B, h, w)
    masked: Tensor  # bool (B, h, w)


@torch.no_grad()
def predict_masked(
    logits: CodeLogits,
    codes: Tensor,
    classes: Tensor | None,
    ratio: float,
    seed: int = 0,
    *,
    first_index: int = 0,
) -> MaskedPrediction:
    """Predict a `ratio` of the true codes int64 (B, h, w) from the others, in one pass.

    `logits(codes (B, N), classes)` gives (B, N, K): a NAR generator (put in eval mode for the
    call), or any callable, which finds MASKED where a code is hidden. classes int64 (B,) or None.
    The images are numbers first_index, first_index + 1, ...; what is hidden depends on seed, number
    and ratio, see `random_masks`, and an image's figures are its own, as in `predict`. Raises
    ValueError for a ratio outside (0, 1], an AR generator, another grid, or codes out of range.
    """
    if isinstance(logits, Generator) and not isinstance(logits, NARTransformer):
        raise ValueError(
            f"expected a NAR generator, found {type(logits).__name__}; use predict for an AR one"
        )
    num, length = codes.flatten(1).shape
    masked = random_masks(num, length, ratio, seed, first_index, codes.device)
    if isinstance(logits, NARTransformer):
        flat = logits.flat(codes)
        check_codes(flat, logits.config.num_codes)
        with evaluating(logits):
            scores = logits(flat.masked_fill(masked, logits.mask_code), classes)
    else:
        scores = logits(codes.flatten(1).masked_fill(masked, MASKED), classes)
    masked = masked.view_as(codes)
    return MaskedPrediction(_known_elsewhere(judge(scores, codes), codes, masked), masked)


def random_masks(
    num: int,
    length: int,
    ratio: float,
    seed: int,
    first_index: int = 0,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Bool (num, length): of each image ratio * length positions, rounded, and at least one.

    A function of seed, image number and ratio, for every batch and device. An image's positions
    have one random order, and a ratio takes its first ones: a smaller mask lies within a larger
    one, so that figures at two ratios differ by the context and not by luck. ValueError for a
    ratio outside (0, 1].
    """
    if not 0 < ratio <= 1:
        raise ValueError(f"ratio: expected a share in (0, 1], found {ratio}")
    noise = Noise.consecutive(seed, first_index, num, device)
    order = ranks(noise.uniform(PROBE_MASKS, torch.arange(length, device=device)))
    return order < max(1, round(ratio * length))


def _known_elsewhere(found: Prediction, codes: Tensor, masked: Tensor) -> Prediction:
    return Prediction(
        codes=torch.where(masked, found.codes, codes),
        correct=found.correct | ~masked,
        cross_entropy=found.cross_entropy.masked_fill(~masked, 0.0),
        in_top5=found.in_top5 | ~masked,
        entropy=found.entropy.masked_fill(~masked, 0.0),
        confidence=found.confidence.masked_fill(~masked, 1.0),
    )
