"""Convolutional encoder and decoder of the tokenizer (Sec. 3.1; the layout is MaskGIT's).

Residual blocks without bias, GroupNorm and swish, 2x2 average pooling down, nearest-neighbour
doubling and a 3x3 convolution up. The decoder of Table 1 and of phase 2 adds, at every level,
extra residual blocks ("+Conv") or attention pairs ("+Attention").
"""

from collections.abc import Sequence

from torch import Tensor, nn

from semvq.kernels.layout import channels_last_on_cuda, doubled, halved
from semvq.tokenizer.norm_silu import NormSiLU
from semvq.tokenizer.regional import AttentionPair


class ResidualBlock(nn.Module):
    """Two normalised 3x3 convolutions and a skip.

    Where the width changes, the 1x1 shortcut reads the block's *output*, not its input, so such a
    block has no true skip. That is how the public MaskGIT weights were trained, and it is the only
    reading that gives the paper's 54.5M parameters.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = NormSiLU(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = NormSiLU(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        changes = in_channels != out_channels
        self.shortcut = nn.Conv2d(out_channels, out_channels, 1, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) to (B, out, H, W)."""
        h = self.conv1(self.norm1(x))
        h = self.conv2(self.norm2(h))
        return h + (x if self.shortcut is None else self.shortcut(h))

    def zero_output(self) -> None:
        """Make a block of constant width the identity, as an addition to a trained decoder."""
        assert self.shortcut is None
        nn.init.zeros_(self.conv2.weight)


def residual_blocks(in_channels: int, out_channels: int, num_blocks: int) -> nn.ModuleList:
    """`num_blocks` blocks, the first of which changes the width."""
    widths = [in_channels] + [out_channels] * num_blocks
    return nn.ModuleList(ResidualBlock(a, b) for a, b in zip(widths[:-1], widths[1:]))


class EncoderLevel(nn.Module):
    """Residual blocks at one resolution, then 2x2 average pooling unless it is the last level."""

    def __init__(self, in_channels: int, out_channels: int, num_blocks: int, pool: bool) -> None:
        super().__init__()
        self.blocks = residual_blocks(in_channels, out_channels, num_blocks)
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) to (B, out, H/2, W/2), or at full size without pooling."""
        for block in self.blocks:
            x = block(x)
        return halved(x) if self.pool else x


class DecoderLevel(nn.Module):
    """Residual blocks, then attention pairs, then doubling unless it is the last level.

    Extra blocks and pairs follow the level's own blocks, at the level's output width: the
    arrangement that gives the parameter counts of Table 1.
    """

    def __init__(
        self, in_channels: int, out_channels: int, num_blocks: int, num_pairs: int, heads: int
    ) -> None:
        super().__init__()
        self.blocks = residual_blocks(in_channels, out_channels, num_blocks)
        self.pairs = nn.ModuleList(AttentionPair(out_channels, heads) for _ in range(num_pairs))
        self.upsample: nn.Conv2d | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) to (B, out, 2H, 2W), or at the same size on the last level."""
        for block in self.blocks:
            x = block(x)
        for pair in self.pairs:
            x = pair(x)
        if self.upsample is None:
            return x
        return self.upsample(doubled(x))


class Encoder(nn.Module):
    """Images to latents; level i works at 1/2**i of the resolution with channels x multiplier."""

    def __init__(
        self,
        channels: int,
        multipliers: Sequence[int],
        blocks_per_level: int,
        middle_blocks: int,
        code_dim: int,
    ) -> None:
        super().__init__()
        widths = [channels * m for m in multipliers]
        self.conv_in = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.levels = nn.ModuleList(
            EncoderLevel(a, b, blocks_per_level, pool=i < len(widths) - 1)
            for i, (a, b) in enumerate(zip([channels, *widths[:-1]], widths))
        )
        self.middle = residual_blocks(widths[-1], widths[-1], middle_blocks)
        self.norm_out = NormSiLU(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], code_dim, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) to latents (B, code_dim, H/f, W/f), f = 2**(levels - 1)."""
        x = self.conv_in(channels_last_on_cuda(images))
        for level in self.levels:
            x = level(x)
        for block in self.middle:
            x = block(x)
        return self.conv_out(self.norm_out(x))


class Decoder(nn.Module):
    """Embeddings to images; `levels` run from the coarsest to the finest."""

    def __init__(
        self,
        channels: int,
        multipliers: Sequence[int],
        blocks_per_level: int,
        middle_blocks: int,
        code_dim: int,
        *,
        extra_blocks: int = 0,
        num_pairs: int = 0,
        heads: int = 1,
    ) -> None:
        super().__init__()
        widths = [channels * m for m in reversed(multipliers)]
        self.conv_in = nn.Conv2d(code_dim, widths[0], 3, padding=1)
        self.middle = residual_blocks(widths[0], widths[0], middle_blocks)
        self.levels = nn.ModuleList(
            DecoderLevel(a, b, blocks_per_level + extra_blocks, num_pairs, heads)
            for a, b in zip([widths[0], *widths[:-1]], widths)
        )
        for level, width in zip(self.levels[:-1], widths):
            level.upsample = nn.Conv2d(width, width, 3, padding=1)
        self.norm_out = NormSiLU(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Embeddings (B, code_dim, h, w) to images (B, 3, fh, fw), not clamped."""
        x = self.conv_in(channels_last_on_cuda(embeddings))
        for block in self.middle:
            x = block(x)
        for level in self.levels:
            x = level(x)
        return self.conv_out(self.norm_out(x))
