"""VQGAN's networks (Esser, Rombach and Ommer 2021, Table 7), as taming-transformers publishes them.

Unlike the paper's own (`tokenizer.conv`) they have biases, a shortcut that reads its block's input,
strided convolutions down, and full attention of one head on the smallest maps. RQ-VAE (Lee et al.
2022) uses them with one level more; MoVQ (`movq`) changes the decoder's norms.
"""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from semvq.kernels.layout import channels_last_on_cuda
from semvq.rivals.vqgan_layers import PLAIN, Doubling, Halving, Level, Norms, layers, middle
from semvq.tokenizer.conv import MAX_BLOCKS, at_most
from semvq.tokenizer.model import TokenizerConfig


@dataclass(frozen=True)
class VQGANConfig(TokenizerConfig):
    """VQGAN of f = 2**(len(multipliers) - 1); the defaults have Table 3's 72.1M (72,141,699).

    The encoder has `blocks_per_level` residual blocks in every level and the decoder one more;
    attention follows each of them in the level whose map has the side `attention_side` at the
    configured resolution. RQ-VAE is `multipliers=(1, 1, 2, 2, 4, 4)` and `attention_side=8`.
    """

    factor_is = "two to the number of multipliers less one"
    channels: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    blocks_per_level: int = 2
    attention_side: int = 16

    @property
    def factor(self) -> int:
        """Pixels per side of a code, f."""
        return 2 ** (len(self.multipliers) - 1)

    @property
    def num_blocks(self) -> int:
        """Residual blocks and attentions of both networks, with three in the middle of each."""
        per_level = 2 * self.blocks_per_level + 1
        return (len(self.multipliers) + 1) * per_level + 6

    def check(self) -> None:
        """Raise ValueError where no tokenizer can have this shape; bounds are `conv`'s."""
        if not self.multipliers or min(self.multipliers) < 1:
            raise ValueError(f"expected multipliers of 1 and more, found {self.multipliers}")
        at_most(len(self.multipliers), 1, 10, "a number of multipliers")
        at_most(self.channels * max(self.multipliers), 1, 65_536, "channels x multiplier")
        at_most(self.blocks_per_level, 1, MAX_BLOCKS, "blocks_per_level")
        super().check()
        if self.attention_side not in self._sides():
            raise ValueError(
                f"expected attention_side to be one of the levels' sides {self._sides()}, "
                f"found {self.attention_side}"
            )

    def _sides(self) -> list[int]:
        return [self.resolution // 2**level for level in range(len(self.multipliers))]

    def shape(self) -> "Shape":
        """What both networks are made from."""
        return Shape(
            widths=[self.channels * m for m in self.multipliers],
            attends=[side == self.attention_side for side in self._sides()],
            blocks_per_level=self.blocks_per_level,
            channels=self.channels,
            code_dim=self.quantizer.code_dim,
            latent_channels=self.quantizer.code_dim,
        )

    def encoder(self) -> nn.Module:
        """See `TokenizerConfig`."""
        return Encoder(self.shape())

    def decoder(self) -> nn.Module:
        """See `TokenizerConfig`."""
        return Decoder(self.shape())


class Shape(NamedTuple):
    """Sizes of the networks: width of each level, finest first, and whether it has attention.

    `latent_channels` is what the networks end and begin with, before and after the 1x1 convolutions
    that lead to the codes' width and back; `code_convs` False leaves these to the quantizer.
    """

    widths: list[int]
    attends: list[bool]
    blocks_per_level: int
    channels: int
    code_dim: int
    latent_channels: int
    middle_attention: bool = True
    code_convs: bool = True

    def code_conv(self, in_channels: int, out_channels: int) -> nn.Module:
        """A 1x1 convolution on one side of the codes; nothing where there is none."""
        return nn.Conv2d(in_channels, out_channels, 1) if self.code_convs else nn.Identity()


class Encoder(nn.Module):
    """Images to latents; the last 1x1 convolution is the published `quant_conv`."""

    def __init__(self, shape: Shape, norms: Norms = PLAIN) -> None:
        super().__init__()
        widths, last = shape.widths, shape.widths[-1]
        self.conv_in = nn.Conv2d(3, shape.channels, 3, padding=1)
        self.levels = nn.ModuleList(
            Level(layers(a, b, shape.blocks_per_level, attends, norms))
            for a, b, attends in zip([shape.channels, *widths[:-1]], widths, shape.attends)
        )
        for level, width in zip(self.levels[:-1], widths):
            level.resample = Halving(width)
        self.middle = middle(last, norms, shape.middle_attention)
        self.norm_out = norms.silu(last)
        self.conv_out = nn.Conv2d(last, shape.latent_channels, 3, padding=1)
        self.to_latents = shape.code_conv(shape.latent_channels, shape.code_dim)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) to latents (B, code_dim, H/f, W/f)."""
        x = self.conv_in(channels_last_on_cuda(images))
        for level in self.levels:
            x = level(x)
        return self.to_latents(self.conv_out(self.norm_out(self.middle(x))))


class Decoder(nn.Module):
    """Embeddings to images; `levels` run from the coarsest to the finest.

    The first 1x1 convolution is the published `post_quant_conv`.
    """

    def __init__(self, shape: Shape, norms: Norms = PLAIN) -> None:
        super().__init__()
        widths, first = shape.widths[::-1], shape.widths[-1]
        self.from_embeddings = shape.code_conv(shape.code_dim, shape.latent_channels)
        self.conv_in = nn.Conv2d(shape.latent_channels, first, 3, padding=1)
        self.middle = middle(first, norms, shape.middle_attention)
        self.levels = nn.ModuleList(
            Level(layers(a, b, shape.blocks_per_level + 1, attends, norms))
            for a, b, attends in zip([first, *widths[:-1]], widths, shape.attends[::-1])
        )
        for level, width in zip(self.levels[:-1], widths):
            level.resample = Doubling(width)
        self.norm_out = norms.silu(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)

    @property
    def last_layer(self) -> Tensor:
        """The last weight, (3, width, 3, 3)."""
        return self.conv_out.weight

    def given(self, embeddings: Tensor) -> tuple[Tensor, ...]:
        """What every norm reads beside its map: nothing here."""
        return ()

    def forward(self, embeddings: Tensor) -> Tensor:
        """Embeddings (B, code_dim, h, w) to images (B, 3, fh, fw), not clamped."""
        embeddings = channels_last_on_cuda(embeddings)
        given = self.given(embeddings)
        x = self.conv_in(self.from_embeddings(embeddings))
        x = self.middle(x, *given)
        for level in self.levels:
            x = level(x, *given)
        return self.conv_out(self.norm_out(x, *given))
