"""Cross-entropy of codes, from logits in whatever precision the head gave them.

Logits are the largest tensors of a step: 64 x 256 x 2,025, all rows of MaskGIT's table, are 66 MB
in bf16. In float32 `F.cross_entropy`, and each figure to log, would pass over twice that again and
again. Here they are read in pieces of rows, or by one kernel each way where the module is compiled.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# Logits of a piece: its float32 copies stay in the cache, of a core or of a GPU. On a CPU core both
# ways with smoothing, 64 x 256 x 1,024: 0.16 s in float32 and 0.22 s in bf16; by `F.cross_entropy`
# 0.40 and 0.50 s, logged figures included (a trial, by no command that was kept).
_PIECE_CPU, _PIECE = 2**18, 2**22


class Scores(NamedTuple):
    """What a transformer's logits are worth at each position; all (B, N)."""

    loss: Tensor  # nats, smoothed: to be minimised
    nats: Tensor  # nats of the true code, without gradient
    hits: Tensor  # bool: whether the true code is the likeliest one


class CrossEntropy(nn.Module):
    """A module, without weights, so that it can be compiled on its own: `module.compile()`."""

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, codes: Tensor) -> Scores:
        """Logits (B, N, V) and int64 codes (B, N), in float32 or wider, as `F.cross_entropy`.

        The logits' gradient has their dtype.
        """
        found = _CrossEntropy.apply(
            logits.flatten(0, 1), codes.reshape(-1, 1), self.label_smoothing
        )
        return Scores(*(x.view_as(codes) for x in found))


class _CrossEntropy(torch.autograd.Function):
    """With smoothing s: -sum_v q_v log p_v, q_v = s / V, at the true code 1 - s more."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, codes: Tensor, smoothing: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (R, V), codes (R, 1): smoothed loss, plain nats and hits, each (R,)."""
        rows = _rows(logits)
        pieces = zip(logits.split(rows), codes.split(rows))
        parts = [_scores(_wide(x), own, smoothing) for x, own in pieces]
        loss, nats, hits, normaliser = (torch.cat(part) for part in zip(*parts))
        ctx.save_for_backward(logits, codes, normaliser)
        ctx.smoothing = smoothing
        ctx.mark_non_differentiable(nats, hits)
        return loss, nats, hits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """g (p - q), in the logits' dtype; p is made again, which is cheaper than keeping it."""
        logits, codes, normaliser = ctx.saved_tensors
        shared, rows = ctx.smoothing / logits.shape[1], _rows(logits)
        found = torch.empty_like(logits)
        inputs = (logits, normaliser.unsqueeze(1), gradients[0].unsqueeze(1), found)
        for x, z, g, out in zip(*(t.split(rows) for t in inputs)):
            out.copy_((_wide(x) - z).exp_().sub_(shared).mul_(g))
        # the true code's entry anew, from float32: p may be near q there
        own = (_wide(logits.gather(1, codes)[:, 0]) - normaliser).exp() - shared
        own = gradients[0] * (own - (1 - ctx.smoothing))
        return found.scatter_(1, codes, own.unsqueeze(1).to(found.dtype)), None, None


def _scores(x: Tensor, codes: Tensor, smoothing: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Smoothed loss, plain nats, hits and log-normaliser (R,) of logits (R, V), codes (R, 1)."""
    top, likeliest = x.max(-1)
    normaliser = (x - top.unsqueeze(1)).exp_().sum(-1).log() + top
    nats = normaliser - x.gather(1, codes)[:, 0]
    loss = nats.clone()  # never the same tensor: one has a gradient, the other has none
    if smoothing:
        loss = (1 - smoothing) * nats + smoothing * (normaliser - x.mean(-1))
    return loss, nats, likeliest == codes[:, 0], normaliser


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _rows(logits: Tensor) -> int:
    """Rows of a piece; all where this is compiled, as nothing but the results is then kept."""
    if torch.compiler.is_compiling():
        return len(logits)
    limit = _PIECE_CPU if logits.device.type == "cpu" else _PIECE
    return max(1, limit // logits.shape[1])
