"""The visualisation pipeline (Sec. 3.2, Fig. 4): the top-1 code given the true context.

One pass over the true codes s of an image gives, at every position, what a causal transformer would
have said next; decoding s and s' side by side shows what it understood of that image.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from semvq.generators.base import Generator, evaluating

TOP = 5
_CHUNK = 2**22  # scores that are turned into probabilities at once

# (codes int64 (B, N), classes (B,) or None) -> logits (B, N, K)
CodeLogits = Callable[[Tensor, Tensor | None], Tensor]


class Prediction(NamedTuple):
    """What was predicted of the true codes, and how well: per position, each (B, h, w)."""

    codes: Tensor  # int64: s', the likeliest code given the true ones before it; ties to the lowest
    correct: Tensor  # bool: whether that is the true code
    cross_entropy: Tensor  # float32: nats of the true code
    in_top5: Tensor  # bool: whether fewer than 5 codes rank before the true one; ties as above
    entropy: Tensor  # float32: nats of the whole distribution
    confidence: Tensor  # float32: probability of the likeliest code


@torch.no_grad()
def predict(logits: CodeLogits, codes: Tensor, classes: Tensor | None = None) -> Prediction:
    """Teacher-forced prediction of the true codes int64 (B, h, w), in one pass.

    `logits(codes (B, N), classes)` gives (B, N, K), those at i from the codes before i in raster
    order alone: an AR generator (put in eval mode for the call), or any callable that keeps to
    that. classes int64 (B,) or None. An image's figures are its own: the rest of the batch only
    moves the rounding inside `logits`. Raises ValueError for a generator that is not causal,
    another grid, a code the logits have no place for, or logits that are not a number.
    """
    if not isinstance(logits, Generator):
        return judge(logits(codes.flatten(1), classes), codes)
    if not logits.causal:
        raise ValueError(
            f"expected an AR generator, found {type(logits).__name__}: it would see the very "
            "codes it is asked for; use predict_masked"
        )
    flat = logits.flat(codes)
    check_codes(flat, logits.config.num_codes)
    with evaluating(logits):
        return judge(logits(flat, classes), codes)


@torch.no_grad()
def judge(scores: Tensor, codes: Tensor) -> Prediction:
    """The figures of logits (B, N, K) about the true codes int64 (B, h, w), N = h * w.

    Row by row in chunks, so memory beside the logits is bounded. Raises ValueError for another
    shape, a code of K or more, or logits that are not a number.
    """
    num, length = codes.flatten(1).shape
    if scores.ndim != 3 or tuple(scores.shape[:2]) != (num, length):
        raise ValueError(f"expected logits ({num}, {length}, K), found {tuple(scores.shape)}")
    num_codes = scores.shape[-1]
    check_codes(codes, num_codes)
    size = max(1, _CHUNK // num_codes)
    chunks = zip(scores.flatten(0, 1).split(size), codes.flatten().split(size))
    columns = zip(*(_judge_rows(rows.float(), truth) for rows, truth in chunks))
    found = Prediction(*(torch.cat(column).view_as(codes) for column in columns))
    if found.cross_entropy.isnan().any():
        raise ValueError("expected logits that are numbers, found NaN; did the training diverge?")
    return found


def _judge_rows(scores: Tensor, truth: Tensor) -> Prediction:
    """As `judge`, of fp32 rows (R, K) and their true codes (R,); figures (R,)."""
    best = scores.argmax(-1)
    own = truth.unsqueeze(1)
    # Ranks come from the scores themselves: the logarithm below may round two of them to one.
    true_score = scores.gather(1, own)
    rank = (scores > true_score).sum(1)
    lower = torch.arange(scores.shape[1], device=scores.device) < own
    rank += ((scores == true_score) & lower).sum(1)
    log_share = scores.log_softmax(-1)
    return Prediction(
        codes=best,
        correct=best == truth,
        cross_entropy=-log_share.gather(1, own)[:, 0],
        in_top5=rank < TOP,
        entropy=torch.special.entr(log_share.exp()).sum(1),  # 0 log 0 is 0 there
        confidence=log_share.gather(1, best.unsqueeze(1))[:, 0].exp(),
    )


def check_codes(codes: Tensor, num_codes: int) -> None:
    """Raise ValueError unless there are codes (any shape) and all lie in [0, num_codes)."""
    if not codes.numel():
        raise ValueError(f"expected codes, found none: a tensor of shape {tuple(codes.shape)}")
    low, high = int(codes.min()), int(codes.max())
    if low < 0 or high >= num_codes:
        raise ValueError(
            f"expected codes below {num_codes}, found {low} to {high}; "
            "are they another tokenizer's codes?"
        )
