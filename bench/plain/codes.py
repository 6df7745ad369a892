"""Nearest codes and the usage entropy, with the whole N x K matrix in memory (Sec. 3.1, 3.4)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from semvq.tokenizer.quantize import VectorQuantizerConfig

_SAMPLE = 4096  # rows that the distance's scale is measured on


def nearest(rows: Tensor, codebook: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """Index of the nearest code (K, C) of each of rows (N, C), int64 (N,)."""
    return torch.cdist(rows.to(dtype), codebook.to(dtype)).argmin(1)


def squared_distances(rows: Tensor, codebook: Tensor) -> Tensor:
    """(N, K) of rows (N, C) and codes (K, C)."""
    products = rows @ codebook.T
    squared = rows.square().sum(1, keepdim=True) - 2 * products + codebook.square().sum(1)
    return squared.clamp_min(0)


def soft_usage(rows: Tensor, codebook: Tensor, temperature: float | Tensor) -> Tensor:
    """Mean softmax over codes, (K,): the whole (N, K) matrix, its softmax and their gradients."""
    return (-squared_distances(rows, codebook) / temperature).softmax(1).mean(0)


def entropy(usage: Tensor) -> Tensor:
    """In nats."""
    return -(usage * usage.clamp_min(1e-20).log()).sum()


def quantizer_loss(
    latents: Tensor, codebook: Tensor, config: VectorQuantizerConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, codes (B, h, w), straight-through embeddings (B, C, h, w)) of latents (B, C, h, w).

    For the squared distance with the data's scale, which is the default (D2).
    """
    assert config.entropy_distance == "l2_squared" and config.entropy_scale == "data"
    b, c, height, width = latents.shape
    latents = latents.float()
    rows = latents.permute(0, 2, 3, 1).reshape(-1, c)
    codes = torch.cdist(rows.detach(), codebook.detach()).argmin(1)
    found = codebook[codes].view(b, height, width, c).permute(0, 3, 1, 2)
    with torch.no_grad():
        gaps = squared_distances(rows[:: max(1, len(rows) // _SAMPLE)], codebook)
        scale = (gaps.mean(1) - gaps.amin(1)).mean().clamp_min(1e-6)
    usage = soft_usage(rows, codebook, config.entropy_temperature * scale)
    loss = (
        config.codebook_weight * F.mse_loss(found, latents.detach())
        + config.commitment_weight * F.mse_loss(latents, found.detach())
        - config.entropy_weight * entropy(usage)
    )
    embeddings = latents + (found - latents).detach()
    return loss, codes.view(b, height, width), embeddings
