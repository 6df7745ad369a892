"""Convolutional encoder and decoder of the tokenizer (Sec. 3.1; the layout is MaskGIT's).

Residual blocks without bias, GroupNorm and swish, 2x2 average pooling down, nearest-neighbour
doubling and a 3x3 convolution up. The decoder of Table 1 and of phase 2 adds, at every level,
extra residual blocks ("+Conv") or attention pairs ("+Attention").
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from semvq.kernels.layout import channels_last_on_cuda, doubled, halved
from semvq.tokenizer.model import TokenizerConfig
from semvq.tokenizer.norm_silu import NormSiLU
from semvq.tokenizer.regional import AttentionPair

MAX_BLOCKS = 64  # of one kind, per level


@dataclass(frozen=True)
class ConvTokenizerConfig(TokenizerConfig):
    """The paper's tokenizer; the defaults are its baseline (54,515,587 parameters).

    The downsampling factor is f = 2**(len(multipliers) - 1). `decoder_extra_blocks` is 2 for
    "+Conv x2" (Table 1); `decoder_attention_pairs` is 1 for SeQ-GAN and 2 for "+Attention x2",
    each per decoder level.
    """

    factor_is = "two to the number of multipliers less one"
    channels: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    blocks_per_level: int = 2
    middle_blocks: int = 2
    decoder_extra_blocks: int = 0
    decoder_attention_pairs: int = 0
    attention_heads: int = 4

    @property
    def factor(self) -> int:
        """Pixels per side of a code, f."""
        return 2 ** (len(self.multipliers) - 1)

    @property
    def num_blocks(self) -> int:
        """Residual blocks and attention pairs of both networks."""
        per_level = 2 * self.blocks_per_level
        per_level += self.decoder_extra_blocks + self.decoder_attention_pairs
        return len(self.multipliers) * per_level + 2 * self.middle_blocks

    def check(self) -> None:
        """Raise ValueError where no tokenizer can have this shape.

        The upper bounds are far above any use; they stop a broken file from filling the memory.
        """
        if not self.multipliers or min(self.multipliers) < 1:
            raise ValueError(f"expected multipliers of 1 and more, found {self.multipliers}")
        at_most(len(self.multipliers), 1, 10, "a number of multipliers")
        at_most(self.channels * max(self.multipliers), 1, 65_536, "channels x multiplier")
        for name in ("blocks_per_level", "attention_heads"):
            at_most(getattr(self, name), 1, MAX_BLOCKS, name)
        for name in ("middle_blocks", "decoder_extra_blocks", "decoder_attention_pairs"):
            at_most(getattr(self, name), 0, MAX_BLOCKS, name)
        super().check()

    def _shape(self) -> tuple[int, tuple[int, ...], int, int, int]:
        sizes = self.channels, self.multipliers, self.blocks_per_level, self.middle_blocks
        return *sizes, self.quantizer.code_dim

    def encoder(self) -> "Encoder":
        """See `TokenizerConfig`."""
        return Encoder(*self._shape())

    def decoder(self) -> "Decoder":
        """See `TokenizerConfig`."""
        return Decoder(
            *self._shape(),
            extra_blocks=self.decoder_extra_blocks,
            num_pairs=self.decoder_attention_pairs,
            heads=self.attention_heads,
        )


def at_most(value: int, low: int, high: int, what: str) -> None:
    """Raise ValueError for a value outside of [low, high]."""
    if not low <= value <= high:
        raise ValueError(f"expected {what} in [{low}, {high}], found {value}")


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

    @property
    def last_layer(self) -> Tensor:
        """The last weight, (3, channels, 3, 3)."""
        return self.conv_out.weight

    def forward(self, embeddings: Tensor) -> Tensor:
        """Embeddings (B, code_dim, h, w) to images (B, 3, fh, fw), not clamped."""
        x = self.conv_in(channels_last_on_cuda(embeddings))
        for block in self.middle:
            x = block(x)
        for level in self.levels:
            x = level(x)
        return self.conv_out(self.norm_out(x))
