"""The visualisation pipeline (Sec. 3.2, Fig. 4): the top-1 code given the true context.

One pass over the true codes s of an image gives, at every position, what a causal transformer would
have said next; decoding s and s' side by side shows what it understood of that image.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from semvq.generators.base import Generator, evaluating


class Prediction(NamedTuple):
    """Teacher-forced figures per position, each (B, h, w)."""

    codes: Tensor  # int64: s', the likeliest code given the true ones before it; ties to the lowest
    correct: Tensor  # bool: whether that is the true code
    cross_entropy: Tensor  # float32: nats of the true code


@torch.no_grad()
def predict(
    logits: Callable[[Tensor, Tensor | None], Tensor], codes: Tensor, classes: Tensor | None = None
) -> Prediction:
    """Teacher-forced prediction of the true codes int64 (B, h, w), in one pass.

    `logits(codes (B, N), classes)` gives (B, N, K), those at i from the codes before i in raster
    order alone: an AR generator (put in eval mode for the call), or any callable that keeps to
    that. classes int64 (B,) or None. Raises ValueError for a generator that is not causal, another
    grid, or a code the logits have no place for.
    """
    flat = codes.flatten(1)
    if isinstance(logits, Generator):
        if not logits.causal:
            raise ValueError(
                f"expected an AR generator, found {type(logits).__name__}: it would see the very "
                "codes it is asked for"
            )
        flat = logits.flat(codes)
        _check_codes(flat, logits.config.num_codes)
        with evaluating(logits):
            scores = logits(flat, classes).float()
    else:
        scores = logits(flat, classes).float()
        _check_codes(flat, scores.shape[-1])
    best = scores.argmax(-1)
    cross_entropy = F.cross_entropy(scores.transpose(1, 2), flat, reduction="none")
    return Prediction(
        codes=best.view_as(codes),
        correct=(best == flat).view_as(codes),
        cross_entropy=cross_entropy.view_as(codes),
    )


def _check_codes(codes: Tensor, num_codes: int) -> None:
    low, high = int(codes.min()), int(codes.max())
    if low < 0 or high >= num_codes:
        raise ValueError(
            f"expected codes below {num_codes}, found {low} to {high}; "
            "are they another tokenizer's codes?"
        )
