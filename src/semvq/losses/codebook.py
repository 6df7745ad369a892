"""Losses that shape the codebook: Eq. 2's two quantization terms and Sec. 3.4's usage entropy."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Distance = Literal["l2", "l2_squared"]

_CHUNK = 2**25  # elements of the (rows, codes) distance matrix held at once


def codebook_loss(latents: Tensor, embeddings: Tensor) -> Tensor:
    """Move codes to their latents: mean of |sg[E(x)] - z_q|^2 over all elements (Eq. 2)."""
    return F.mse_loss(embeddings, latents.detach())


def commitment_loss(latents: Tensor, embeddings: Tensor) -> Tensor:
    """Move latents to their codes: mean of |sg[z_q] - E(x)|^2 over all elements (Eq. 2)."""
    return F.mse_loss(latents, embeddings.detach())


def distances(rows: Tensor, codebook: Tensor, distance: Distance) -> Tensor:
    """Distance of each of `rows` (N, C) to each code of `codebook` (K, C): (N, K), in fp32."""
    products = rows @ codebook.t()
    squared = rows.square().sum(1, keepdim=True) - 2 * products + codebook.square().sum(1)
    squared = squared.clamp_min(0)
    if distance == "l2_squared":
        return squared
    # The root has no gradient at zero; this floor is far below any distance that matters.
    return squared.clamp_min(1e-12).sqrt()


@torch.no_grad()
def distance_scale(rows: Tensor, codebook: Tensor, distance: Distance) -> Tensor:
    """Typical gap between a row's mean and least distance, a scalar; 0 never comes back.

    It is the unit in which the softmax of `soft_usage` tells codes apart, whatever the width or
    the size of the latents (D2).
    """
    num_rows = max(1, min(4096, _CHUNK // len(codebook)))
    sample = rows[:: max(1, len(rows) // num_rows)]
    found = distances(sample, codebook, distance)
    return (found.mean(1) - found.amin(1)).mean().clamp_min(1e-6)


def soft_usage(
    rows: Tensor, codebook: Tensor, distance: Distance, temperature: float | Tensor
) -> Tensor:
    """Mean over rows of softmax(-distance / temperature): the paper's D-bar (K,), which sums to 1.

    The mean is over every position of every image (D3). `rows` is (N, C), `codebook` (K, C). The
    (N, K) matrix is made in chunks, which the backward pass makes again.
    """

    def total(chunk: Tensor, codes: Tensor) -> Tensor:
        return (-distances(chunk, codes, distance) / temperature).softmax(1).sum(0)

    size = max(1, _CHUNK // len(codebook))
    if len(rows) <= size:
        return total(rows, codebook) / len(rows)
    parts = [checkpoint(total, part, codebook, use_reentrant=False) for part in rows.split(size)]
    return torch.stack(parts).sum(0) / len(rows)


def usage_entropy(usage: Tensor) -> Tensor:
    """Entropy of D-bar (K,) in nats: H = -sum_k D_k log D_k (Sec. 3.4), at most log K."""
    # D_k can underflow to 0, where the logarithm has no gradient and the product none to give.
    return -(usage * usage.clamp_min(1e-20).log()).sum()
