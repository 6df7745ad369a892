"""Networks of other people's tokenizers, where none of ours is exactly theirs.

`ForeignVQGANConfig` is the family of taming's VQGAN: LlamaGen's and diffusers' differ in where
attention stands, in groups of norms, and in the convolutions about the codes. `UnitRangeConfig` is
MaskGIT's, whose images are in [0, 1].
"""

import hashlib
import json
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from semvq.kernels.layout import channels_last_on_cuda
from semvq.rivals.vqgan_layers import Attention, Block, Doubling, Halving, Level, Norms, layers
from semvq.tokenizer import conv
from semvq.tokenizer.conv import MAX_BLOCKS, ConvTokenizerConfig, at_most
from semvq.tokenizer.model import Tokenizer, TokenizerConfig
from semvq.tokenizer.norm_silu import EPS, Norm

MINUS_ONE_TO_ONE, ZERO_TO_ONE = "[-1, 1]", "[0, 1]"


class ForeignTokenizer(Tokenizer):
    """A tokenizer whose tensors alone do not say what codes they make."""

    def __init__(self, config: TokenizerConfig, facts: dict[str, Any]) -> None:
        super().__init__(config)
        self.facts = facts

    def code_space_hash(self) -> str:
        """See `Tokenizer`; over the facts of the encoder too."""
        whole = super().code_space_hash() + json.dumps(self.facts, sort_keys=True)
        return hashlib.sha256(whole.encode()).hexdigest()


@dataclass(frozen=True)
class ForeignVQGANConfig(TokenizerConfig):
    """VQGAN with `widths` per level, finest first, after a first convolution to `channels`.

    Attention follows every residual block of `attention_levels`, and stands between the two in the
    middle with `middle_attention`. The networks end and begin `latent_channels` wide; with
    `code_convs` 1x1 convolutions lead from there to the codes' width and back, and without them
    the quantizer has to. The encoder has `blocks_per_level` residual blocks, the decoder one more.
    """

    factor_is = "two to the number of widths less one"
    channels: int = 128
    widths: tuple[int, ...] = (128, 128, 256, 256, 512)
    blocks_per_level: int = 2
    attention_levels: tuple[int, ...] = (4,)
    middle_attention: bool = True
    latent_channels: int = 256
    code_convs: bool = True
    norm_groups: int = 32

    @property
    def factor(self) -> int:
        """Pixels per side of a code, f."""
        return 2 ** (len(self.widths) - 1)

    @property
    def num_blocks(self) -> int:
        """Residual blocks and attentions of both networks."""
        per_level = 2 * self.blocks_per_level + 1
        middle = 6 if self.middle_attention else 4
        return (len(self.widths) + len(self.attention_levels)) * per_level + middle

    def check(self) -> None:
        """Raise ValueError where no tokenizer can have this shape; bounds are `conv`'s."""
        at_most(len(self.widths), 1, 10, "a number of widths")
        at_most(self.norm_groups, 1, 65_536, "norm_groups")
        at_most(self.blocks_per_level, 1, MAX_BLOCKS, "blocks_per_level")
        for width in (self.channels, *self.widths):
            at_most(width, 1, 65_536, "widths")
            if width % self.norm_groups:
                raise ValueError(
                    f"expected widths that are multiples of norm_groups ({self.norm_groups}), "
                    f"found {width}"
                )
        at_most(self.latent_channels, 1, 65_536, "latent_channels")
        known = set(range(len(self.widths)))
        if not set(self.attention_levels) <= known:
            raise ValueError(
                f"expected attention_levels below {len(self.widths)}, found {self.attention_levels}"
            )
        if not self.code_convs and self.latent_channels != self.quantizer.code_dim:
            raise ValueError(
                f"expected latent_channels of the quantizer's width {self.quantizer.code_dim} "
                f"without code_convs, found {self.latent_channels}"
            )
        super().check()

    def norms(self) -> Norms:
        """Makers of the norms, with the groups of this configuration."""
        return Norms(*(partial(kind, groups=self.norm_groups) for kind in (GroupedSiLU, Grouped)))

    def encoder(self) -> nn.Module:
        """See `TokenizerConfig`."""
        return ForeignEncoder(self)

    def decoder(self) -> nn.Module:
        """See `TokenizerConfig`."""
        return ForeignDecoder(self)

    def build(self) -> Tokenizer:
        """A tokenizer of this shape, randomly initialised."""
        return ForeignTokenizer(self, {"norm_groups": self.norm_groups, "norm_eps": EPS})


class Grouped(Norm):
    """group_norm(x) in `groups` groups; else as `Norm`."""

    def __init__(self, channels: int, groups: int) -> None:
        nn.GroupNorm.__init__(self, groups, channels, eps=EPS)


class GroupedSiLU(Grouped):
    """`Grouped`, then SiLU."""

    silu = True


def _code_conv(config: ForeignVQGANConfig, *, into_codes: bool) -> nn.Module:
    """The 1x1 convolution on one side of the codes; nothing where a configuration has none."""
    if not config.code_convs:
        return nn.Identity()
    widths = config.latent_channels, config.quantizer.code_dim
    return nn.Conv2d(*(widths if into_codes else widths[::-1]), 1)


def _middle(config: ForeignVQGANConfig) -> Level:
    """Block, attention if there is one, block, at the coarsest resolution."""
    width, norms = config.widths[-1], config.norms()
    between = [Attention(width, norms)] if config.middle_attention else []
    return Level([Block(width, width, norms), *between, Block(width, width, norms)])


class ForeignEncoder(nn.Module):
    """Images to latents; modules are called as in `rivals.vqgan.Encoder`."""

    def __init__(self, config: ForeignVQGANConfig) -> None:
        super().__init__()
        widths, norms = config.widths, config.norms()
        self.conv_in = nn.Conv2d(3, config.channels, 3, padding=1)
        self.levels = nn.ModuleList(
            Level(layers(a, b, config.blocks_per_level, i in config.attention_levels, norms))
            for i, (a, b) in enumerate(zip([config.channels, *widths[:-1]], widths))
        )
        for level, width in zip(self.levels[:-1], widths):
            level.resample = Halving(width)
        self.middle = _middle(config)
        self.norm_out = norms.silu(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], config.latent_channels, 3, padding=1)
        self.to_latents = _code_conv(config, into_codes=True)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) to latents (B, code_dim, H/f, W/f)."""
        x = self.conv_in(channels_last_on_cuda(images))
        for level in self.levels:
            x = level(x)
        return self.to_latents(self.conv_out(self.norm_out(self.middle(x))))


class ForeignDecoder(nn.Module):
    """Embeddings to images; `levels` run from the coarsest to the finest."""

    def __init__(self, config: ForeignVQGANConfig) -> None:
        super().__init__()
        widths, norms = config.widths[::-1], config.norms()
        last, blocks = len(widths) - 1, config.blocks_per_level + 1
        self.from_embeddings = _code_conv(config, into_codes=False)
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.middle = _middle(config)
        self.levels = nn.ModuleList(
            Level(layers(a, b, blocks, last - i in config.attention_levels, norms))
            for i, (a, b) in enumerate(zip([widths[0], *widths[:-1]], widths))
        )
        for level, width in zip(self.levels[:-1], widths):
            level.resample = Doubling(width)
        self.norm_out = norms.silu(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)

    @property
    def last_layer(self) -> Tensor:
        """The last weight, (3, width, 3, 3)."""
        return self.conv_out.weight

    def forward(self, embeddings: Tensor) -> Tensor:
        """Embeddings (B, code_dim, h, w) to images (B, 3, fh, fw), not clamped."""
        x = self.conv_in(self.from_embeddings(channels_last_on_cuda(embeddings)))
        x = self.middle(x)
        for level in self.levels:
            x = level(x)
        return self.conv_out(self.norm_out(x))


@dataclass(frozen=True)
class UnitRangeConfig(ConvTokenizerConfig):
    """The paper's tokenizer with images in [0, 1] inside, as MaskGIT's public weights have them.

    That is no other first layer: at the border zeros stand for black, not for grey. Phase 2 can
    start from it, with this class and `decoder_attention_pairs` as its tokenizer.
    """

    def encoder(self) -> conv.Encoder:
        """See `TokenizerConfig`."""
        return UnitRangeEncoder(*self._shape())

    def decoder(self) -> conv.Decoder:
        """See `TokenizerConfig`."""
        return UnitRangeDecoder(
            *self._shape(),
            extra_blocks=self.decoder_extra_blocks,
            num_pairs=self.decoder_attention_pairs,
            heads=self.attention_heads,
        )

    def build(self) -> Tokenizer:
        """A tokenizer of this shape, randomly initialised."""
        return ForeignTokenizer(self, {"pixel_range": ZERO_TO_ONE})


class UnitRangeEncoder(conv.Encoder):
    """`conv.Encoder` of images moved from [-1, 1] to [0, 1]."""

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] to latents (B, code_dim, H/f, W/f)."""
        return super().forward((images + 1) / 2)


class UnitRangeDecoder(conv.Decoder):
    """`conv.Decoder` whose images are moved from [0, 1] to [-1, 1]."""

    def forward(self, embeddings: Tensor) -> Tensor:
        """Embeddings (B, code_dim, h, w) to images (B, 3, fh, fw) about [-1, 1], not clamped."""
        return super().forward(embeddings) * 2 - 1
