"""Block-regional and dilated attention for the decoder (Sec. 3.4, after HiT, Zhao et al. 2021).

Regional attention looks inside a square block of the map; dilated attention looks across blocks,
from one position of each block to the same position of all others. A pair of the two reaches the
whole map at a fraction of full attention's cost.

A pair moves the map into blocks once, turns it between its two attentions and moves it back; norm
and sum work on blocks too, for they do not care how positions are ordered. Bytes per element of a
bf16 map, forward, under autocast (counted, not measured; a "plain" pair is bench/plain's):
  attention  here 32: norm 6, q k v 8 (reads 2, writes 6), SDPA 8, projection 4, sum 6
             plain 70 to 74: x to fp32 (6), norm dense (8) and read twice, written (12), blocks in
             fp32 (8), to bf16 (6; dilated 4 more to make it dense), q k v 8, SDPA 8, projection 4,
             map 4, sum 6
  pair       here 76: two attentions, and three copies of 4 of the C channels; plain 144
Blocks cut after q, k and v would be copies of 3C channels. Dilated attention could read blocks as
they lie, for 4 less; but then the rows of a head, of 64 bytes each, lie 48 KB apart (C = 128).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import sdpa_kernel

from semvq.kernels.finite_attention import FINITE
from semvq.kernels.layout import memory_format
from semvq.tokenizer.norm_silu import Norm


def block_size(height: int, width: int) -> int:
    """Side of an attention block on a map of this size.

    HiT has 4 at 8 and 16 px and 8 at 32 and 64; 8 is kept on larger maps. Maps under 8 take half
    their side, so that both kinds of attention have something to look at. Always a divisor.
    """
    side = min(height, width)
    limit = 8 if side > 16 else min(4, max(1, side // 2))
    # (Tests of each size and no greatest common divisor, which torch.compile cannot trace.)
    return max(s for s in range(1, 9) if s <= limit and height % s == 0 and width % s == 0)


def to_blocks(x: Tensor, size: int) -> Tensor:
    """(B, C, H, W) to (B, H/size * W/size blocks, size * size positions, C), contiguous."""
    b, c, h, w = x.shape
    # Of a channels_last map all but the last line is a view; the copy moves runs of size * C.
    x = x.permute(0, 2, 3, 1).reshape(b, h // size, size, w // size, size, c)
    return x.transpose(2, 3).reshape(b, -1, size * size, c)


def from_blocks(x: Tensor, size: int, height: int, width: int) -> Tensor:
    """Inverse of `to_blocks`; the map is channels_last."""
    b, _, _, c = x.shape
    x = x.reshape(b, height // size, width // size, size, size, c)
    return x.transpose(2, 3).reshape(b, height, width, c).permute(0, 3, 1, 2)


# CUDA's attention kernels take at most 65,535 sequences per call; at 256 px a batch of 64 has more.
_MAX_SEQUENCES = 32_768


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of (sequences, length, heads, width) tensors, of any strides, to that shape.

    SDPA writes its result in this order of memory, so neither the views nor the result are copied.
    """
    parts = zip(*(t.transpose(1, 2).split(_MAX_SEQUENCES) for t in (q, k, v)))
    with sdpa_kernel(FINITE):  # at all lengths: not every one of them has been tried with cuDNN
        mixed = [F.scaled_dot_product_attention(*part).transpose(1, 2) for part in parts]
    return mixed[0] if len(mixed) == 1 else torch.cat(mixed)


class BlockAttention(nn.Module):
    """Residual multi-head attention within each group of positions.

    The output projection starts at zero, so that a decoder with new attention starts exactly at
    the function it had without it (phase 2). No positions are learned: the parameter counts leave
    no room for them, and the convolutions around know where they are.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(
                f"expected attention_heads to divide every decoder width, found {heads} heads "
                f"and a width of {channels}"
            )
        self.heads = heads
        self.norm = Norm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        nn.init.zeros_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, groups, positions, C), contiguous, to the same shape."""
        b, groups, length, c = x.shape
        # To the norm, groups and positions are the sides of a channels_last map.
        normal = self.norm(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        # Rows (N, C): of matrices the bias is added by the product itself.
        qkv = self.qkv(normal.reshape(-1, c))
        q, k, v = qkv.view(b * groups, length, 3, self.heads, c // self.heads).unbind(2)
        mixed = _attend(q, k, v)
        return x + self.proj(mixed.reshape(-1, c)).view(x.shape)


class AttentionPair(nn.Module):
    """One regional, then one dilated attention."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.regional = BlockAttention(channels, heads)
        self.dilated = BlockAttention(channels, heads)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape and memory format."""
        height, width = x.shape[-2:]
        size = block_size(height, width)
        blocks = self.regional(to_blocks(x, size))
        # (B, positions, blocks, C): a position of each block together with that of all others
        sets = self.dilated(blocks.transpose(1, 2).contiguous())
        out = from_blocks(sets.transpose(1, 2), size, height, width)
        return out.contiguous(memory_format=memory_format(x))
