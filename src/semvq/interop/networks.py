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

from semvq.rivals.vqgan import Decoder, Encoder, Shape
from semvq.rivals.vqgan_layers import Norms
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

    def shape(self) -> Shape:
        """What both networks are made from."""
        return Shape(
            widths=list(self.widths),
            attends=[level in self.attention_levels for level in range(len(self.widths))],
            blocks_per_level=self.blocks_per_level,
            channels=self.channels,
            code_dim=self.quantizer.code_dim,
            latent_channels=self.latent_channels,
            middle_attention=self.middle_attention,
            code_convs=self.code_convs,
        )

    def encoder(self) -> nn.Module:
        """See `TokenizerConfig`."""
        return Encoder(self.shape(), self.norms())

    def decoder(self) -> nn.Module:
        """See `TokenizerConfig`."""
        return Decoder(self.shape(), self.norms())

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
