"""Several codes for a place, from one codebook: MoVQ's multichannel codes (Zheng et al. 2022)."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from semvq.tokenizer.quantize import VectorQuantizer, VectorQuantizerConfig


@dataclass(frozen=True)
class MultichannelQuantizerConfig(VectorQuantizerConfig):
    """`VectorQuantizerConfig` for each of `channels` equal parts of a latent `code_dim` wide.

    The defaults are MoVQ's: 16x16x4 codes at 256 px, K = 1024, parts of 64.
    """

    channels: int = 4

    def build(self) -> "MultichannelQuantizer":
        """The module these settings describe."""
        return MultichannelQuantizer(self)


class MultichannelQuantizer(VectorQuantizer):
    """Each part of a latent becomes its nearest code of the shared codebook (K, C/D).

    Codes are (B, D * h, w): the grid of the first channel, below it that of the second, and so on.
    Losses and usage are the plain quantizer's, over the parts of all channels alike.
    """

    def __init__(self, config: MultichannelQuantizerConfig) -> None:
        width, channels = config.code_dim, config.channels
        if channels < 1 or width % channels:
            raise ValueError(
                f"expected channels that divide code_dim, found {channels} channels and a "
                f"code_dim of {width}"
            )
        super().__init__(replace(config, code_dim=width // channels))
        self.code_dim, self.codes_per_place = width, channels  # what it reads; the codebook's less

    @torch.no_grad()
    def encode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) to codes (B, D * h, w)."""
        return super().encode(self._stacked(latents))

    def lookup(self, codes: Tensor) -> Tensor:
        """Codes (B, D * h, w) to embeddings (B, C, h, w); ValueError for other numbers of rows."""
        rows, channels = codes.shape[1], self.codes_per_place
        if rows % channels:
            raise ValueError(
                f"expected rows of codes for each of {channels} channels, found {rows}"
            )
        parts = super().lookup(codes)
        return parts.unflatten(2, (channels, -1)).transpose(1, 2).flatten(1, 2)

    @torch.no_grad()
    def initialize(self, latents: Tensor) -> None:
        """Take K different parts of latents (B, C, h, w) as codes; see `VectorQuantizer`."""
        super().initialize(self._stacked(latents))

    def mean_assignment(self, latents: Tensor) -> Tensor:
        """D-bar of Sec. 3.4 over the parts of latents (B, C, h, w); see `Quantizer`."""
        return super().mean_assignment(self._stacked(latents))

    def code_facts(self) -> dict[str, Any]:
        """See `Quantizer`; the number of channels decides codes too."""
        return {**super().code_facts(), "channels": self.codes_per_place}

    def _stacked(self, latents: Tensor) -> Tensor:
        """(B, C, h, w) to (B, C/D, D * h, w): the parts one under the other."""
        if latents.shape[1] != self.code_dim:
            raise ValueError(f"expected latents of width {self.code_dim}, found {latents.shape[1]}")
        return latents.unflatten(1, (self.codes_per_place, -1)).transpose(1, 2).flatten(2, 3)
