"""ViT-VQGAN's networks (Yu et al. 2022; Table 2): transformers on patches in place of convolutions.

Encoder: patches, learned positions, pre-norm blocks, a two-layer head with tanh. Decoder: the same
backwards. The small size, 8 blocks of width 512 on either side, is the one of 64M parameters in
Table 3; ours has what the paper describes and comes to fewer, for their sum is not broken down.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from semvq.generators.blocks import Attention, mlp
from semvq.tokenizer.conv import at_most
from semvq.tokenizer.model import TokenizerConfig

INIT_STD = 0.02


@dataclass(frozen=True)
class ViTTokenizerConfig(TokenizerConfig):
    """`num_blocks` blocks of `width` in encoder and decoder each, on patches of `patch` pixels."""

    factor_is = "the side of a patch"
    patch: int = 8
    num_layers: int = 8
    width: int = 512
    num_heads: int = 8

    @property
    def factor(self) -> int:
        """Pixels per side of a code: those of a patch."""
        return self.patch

    @property
    def num_blocks(self) -> int:
        """Of both networks."""
        return 2 * self.num_layers

    def check(self) -> None:
        """Raise ValueError where no tokenizer can have this shape; see `TokenizerConfig`."""
        at_most(self.patch, 1, 256, "a patch")
        at_most(self.num_layers, 1, 256, "num_layers")
        at_most(self.width, 1, 65_536, "a width")
        if self.num_heads < 1 or self.width % self.num_heads:
            raise ValueError(
                f"expected a width that num_heads divides, found {self.width} and {self.num_heads}"
            )
        super().check()

    def encoder(self) -> "ViTEncoder":
        """See `TokenizerConfig`."""
        return ViTEncoder(self)

    def decoder(self) -> "ViTDecoder":
        """See `TokenizerConfig`."""
        return ViTDecoder(self)


class Block(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)); every place sees all others."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width, num_heads, 0.0, causal=False)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, width) to the same."""
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class _Trunk(nn.Module):
    """Positions and blocks over a grid of `side` x `side` places."""

    def __init__(self, config: ViTTokenizerConfig) -> None:
        super().__init__()
        self.side, width = config.resolution // config.patch, config.width
        self.positions = nn.Parameter(torch.randn(self.side**2, width) * INIT_STD)
        self.blocks = nn.ModuleList(
            Block(width, config.num_heads) for _ in range(config.num_layers)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, h, w, width) to the same; ValueError for another grid than the learned one."""
        b, h, w, width = x.shape
        if (h, w) != (self.side, self.side):
            raise ValueError(
                f"expected {self.side} x {self.side} patches, for which positions were learned, "
                f"found {h} x {w}"
            )
        x = x.flatten(1, 2) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.norm(x).view(b, h, w, width)


def _head(width: int, out: int) -> nn.Sequential:
    """The two-layer head with tanh that Yu et al. put behind both networks."""
    hidden = 4 * width
    return nn.Sequential(nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, out))


class ViTEncoder(nn.Module):
    """Images to latents."""

    def __init__(self, config: ViTTokenizerConfig) -> None:
        super().__init__()
        self.patch = config.patch
        self.embed = nn.Linear(3 * config.patch**2, config.width)
        self.trunk = _Trunk(config)
        self.head = _head(config.width, config.quantizer.code_dim)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) to latents (B, code_dim, H/patch, W/patch)."""
        b, c, height, width = images.shape
        p = self.patch
        patches = images.view(b, c, height // p, p, width // p, p).permute(0, 2, 4, 1, 3, 5)
        x = self.trunk(self.embed(patches.flatten(3)))
        return self.head(x).permute(0, 3, 1, 2)


class ViTDecoder(nn.Module):
    """Embeddings to images."""

    def __init__(self, config: ViTTokenizerConfig) -> None:
        super().__init__()
        self.patch = config.patch
        self.embed = nn.Linear(config.quantizer.code_dim, config.width)
        self.trunk = _Trunk(config)
        self.head = _head(config.width, 3 * config.patch**2)

    @property
    def last_layer(self) -> Tensor:
        """The weight that makes the pixels, (3 * patch^2, 4 * width)."""
        last = self.head[2]
        assert isinstance(last, nn.Linear)
        return last.weight

    def forward(self, embeddings: Tensor) -> Tensor:
        """Embeddings (B, code_dim, h, w) to images (B, 3, h * patch, w * patch), not clamped."""
        x = self.head(self.trunk(self.embed(embeddings.permute(0, 2, 3, 1))))
        b, h, w, _ = x.shape
        pixels = x.view(b, h, w, 3, self.patch, self.patch).permute(0, 3, 1, 4, 2, 5)
        return pixels.reshape(b, 3, h * self.patch, w * self.patch)
