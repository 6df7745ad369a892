"""Block-regional and dilated attention for the decoder (Sec. 3.4, after HiT, Zhao et al. 2021).

Regional attention looks inside a square block of the map; dilated attention looks across blocks,
from one position of each block to the same position of all others. A pair of the two reaches the
whole map at a fraction of full attention's cost.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semvq.tokenizer.norm_silu import EPS, norm_groups


def group_norm(channels: int) -> nn.GroupNorm:
    """The norm before attention, grouped as all the tokenizer's norms are."""
    return nn.GroupNorm(norm_groups(channels), channels, eps=EPS)


def block_size(height: int, width: int) -> int:
    """Side of an attention block on a map of this size.

    HiT has 4 at 8 and 16 px and 8 at 32 and 64; 8 is kept on larger maps. Maps under 8 take half
    their side, so that both kinds of attention have something to look at. Always a divisor.
    """
    side = min(height, width)
    limit = 8 if side > 16 else min(4, max(1, side // 2))
    common = math.gcd(height, width)
    return max(size for size in range(1, limit + 1) if common % size == 0)


def to_blocks(x: Tensor, size: int) -> Tensor:
    """(B, C, H, W) to (B, H/size * W/size blocks, size * size positions, C)."""
    b, c, h, w = x.shape
    x = x.reshape(b, c, h // size, size, w // size, size)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(b, -1, size * size, c)


def from_blocks(x: Tensor, size: int, height: int, width: int) -> Tensor:
    """Inverse of `to_blocks`."""
    b, _, _, c = x.shape
    x = x.reshape(b, height // size, width // size, size, size, c)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(b, c, height, width)


# CUDA's attention kernels take at most 65,535 sequences per call; at 256 px a batch of 64 has more.
_MAX_SEQUENCES = 32_768


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of (sequences, heads, length, width) tensors."""
    if len(q) <= _MAX_SEQUENCES:
        return F.scaled_dot_product_attention(q, k, v)
    parts = zip(*(t.split(_MAX_SEQUENCES) for t in (q, k, v)))
    return torch.cat([F.scaled_dot_product_attention(*part) for part in parts])


class BlockAttention(nn.Module):
    """Residual multi-head attention inside blocks, or across them when `dilated`.

    The output projection starts at zero, so that a decoder with new attention starts exactly at
    the function it had without it (phase 2). No positions are learned: the parameter counts leave
    no room for them, and the convolutions around know where they are.
    """

    def __init__(self, channels: int, heads: int, dilated: bool) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(
                f"expected attention_heads to divide every decoder width, found {heads} heads "
                f"and a width of {channels}"
            )
        self.heads = heads
        self.dilated = dilated
        self.norm = group_norm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        nn.init.zeros_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        _, c, height, width = x.shape
        size = block_size(height, width)
        tokens = to_blocks(self.norm(x), size)
        if self.dilated:
            tokens = tokens.transpose(1, 2)
        b, groups, length, _ = tokens.shape
        qkv = self.qkv(tokens).reshape(b * groups, length, 3, self.heads, c // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        attended = _attend(q, k, v).transpose(1, 2)
        out = self.proj(attended.reshape(b, groups, length, c))
        if self.dilated:
            out = out.transpose(1, 2)
        return x + from_blocks(out, size, height, width)


class AttentionPair(nn.Module):
    """One regional, then one dilated attention."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.regional = BlockAttention(channels, heads, dilated=False)
        self.dilated = BlockAttention(channels, heads, dilated=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        return self.dilated(self.regional(x))
