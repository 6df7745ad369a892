"""RQ-VAE's codes (Lee et al. 2022; Table 2): several to a place, each of what the last left over.

The original moves its codebook by running averages; here it learns by the same two terms as ours
(Eq. 2), each the mean over depths, so that one loop trains all.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from semvq.losses.codebook import codebook_loss, commitment_loss
from semvq.rivals.kmeans import sums_of_members
from semvq.tokenizer.nearest import nearest_code
from semvq.tokenizer.quantize import (
    Quantized,
    Quantizer,
    QuantizerConfig,
    flatten,
    straight_through,
)


@dataclass(frozen=True)
class ResidualQuantizerConfig(QuantizerConfig):
    """`depth` codes to a place, all from one codebook (K, C); loss weights as in Eq. 2."""

    depth: int = 4
    codebook_weight: float = 1.0
    commitment_weight: float = 0.25

    def build(self) -> "ResidualQuantizer":
        """The module these settings describe."""
        return ResidualQuantizer(self)


class ResidualQuantizer(Quantizer):
    """Embeddings are sums of `depth` codes; codes are (B, depth * h, w), a grid under the other."""

    def __init__(self, config: ResidualQuantizerConfig) -> None:
        super().__init__(config)
        if config.depth < 1:
            raise ValueError(f"expected a depth of at least 1, found {config.depth}")
        self.codes_per_place = config.depth
        self.codebook = nn.Parameter(torch.empty(config.num_codes, config.code_dim))
        bound = (3 / config.num_codes) ** 0.5
        nn.init.uniform_(self.codebook, -bound, bound)
        weights = {"codebook": config.codebook_weight, "commitment": config.commitment_weight}
        self.loss_weights = {name: w for name, w in weights.items() if w != 0}

    def forward(self, latents: Tensor) -> Quantized:
        """Latents (B, C, h, w) to codes, straight-through embeddings and losses, all in fp32.

        "commitment" is the mean over depths of |z - sg(sum so far)|^2, so that every sum is drawn
        near (their Eq. 9); "codebook" that of |sg(what was left) - code|^2.
        """
        with torch.autocast(latents.device.type, enabled=False):
            latents = latents.float()
            codes = self.encode(latents)
            b, c, h, w = latents.shape
            total = latents.new_zeros(b, h, w, c).permute(0, 3, 1, 2)  # laid out as `lookup`'s sum
            drawn, moved = [], []
            for grid in codes.chunk(self.codes_per_place, dim=1):
                found = self._embed(grid)
                if self.training:
                    moved.append(codebook_loss(latents - total, found))
                total = total + found.detach()
                if self.training:
                    drawn.append(commitment_loss(latents, total))
            if not self.training:
                return Quantized(codes, straight_through(latents, total), {})
            losses = {
                "codebook": torch.stack(moved).mean(),
                "commitment": torch.stack(drawn).mean(),
            }
            losses = {name: loss for name, loss in losses.items() if name in self.loss_weights}
        return Quantized(codes, straight_through(latents, total), losses)

    @torch.no_grad()
    def encode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) to codes (B, depth * h, w), the coarsest grid first."""
        b, _, h, w = latents.shape
        left, grids = flatten(latents), []
        for _ in range(self.codes_per_place):
            found = nearest_code(left, self.codebook)
            left = left - self.codebook[found]
            grids.append(found.view(b, h, w))
        return torch.cat(grids, dim=1)

    def lookup(self, codes: Tensor) -> Tensor:
        """Codes (B, depth * h, w) to embeddings (B, C, h, w); ValueError for other row numbers."""
        rows, depth = codes.shape[1], self.codes_per_place
        if rows % depth:
            raise ValueError(f"expected rows of codes for each of {depth} depths, found {rows}")
        first, *others = codes.chunk(depth, dim=1)
        total = self._embed(first)
        for grid in others:
            total = total + self._embed(grid)
        return total

    def _embed(self, grid: Tensor) -> Tensor:
        return nn.functional.embedding(grid, self.codebook).permute(0, 3, 1, 2)

    @torch.no_grad()
    def initialize(self, latents: Tensor) -> None:
        """Codes for each depth, of what those before it leave of latents (B, C, h, w).

        Each part is rows picked by torch's global RNG, then moved to the mean of those nearest to
        them: where latents are like noise, a row as it is adds more than it takes away. With more
        depths than codes the last have none of their own.
        """
        left, book = flatten(latents), latents.new_zeros(0, self.code_dim, dtype=torch.float32)
        spread = left.std(0, correction=0)
        for depth in range(self.codes_per_place):
            size = (self.num_codes + self.codes_per_place - 1 - depth) // self.codes_per_place
            book = torch.cat([book, _seeds(left, size, spread)])
            left = left - book[nearest_code(left, book)]
        self.codebook.copy_(book)

    def code_facts(self) -> dict[str, object]:
        """The depth decides codes too."""
        return super().code_facts() | {"depth": self.codes_per_place}


def _seeds(rows: Tensor, num: int, spread: Tensor) -> Tensor:
    """Codes (num, C) of rows (N, C), each after one of Lloyd's steps.

    The rows picked are moved by a hundredth of `spread` (C,) before, and one that is nobody's
    nearest stays there: equal codes would never be told apart.
    """
    order = torch.randperm(len(rows)).to(rows.device)
    picked = rows[order.repeat(-(-num // len(rows)))[:num]]
    picked = picked + torch.randn(picked.shape).to(rows) * spread * 0.01
    if not num:
        return picked
    sums, counts = sums_of_members(rows, nearest_code(rows, picked), num)
    return torch.where(counts[:, None] > 0, sums / counts.clamp_min(1)[:, None], picked)
