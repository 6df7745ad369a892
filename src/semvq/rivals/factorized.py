"""ViT-VQGAN's codes (Yu et al. 2022; Table 5, "+F&N"): narrow, and on the unit sphere."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from semvq.losses.codebook import codebook_loss, commitment_loss
from semvq.tokenizer.nearest import nearest_code
from semvq.tokenizer.quantize import Quantized, Quantizer, QuantizerConfig, straight_through


@dataclass(frozen=True)
class FactorizedQuantizerConfig(QuantizerConfig):
    """Codes `factor_dim` wide between latents `code_dim` wide; loss weights as in Eq. 2."""

    factor_dim: int = 32
    codebook_weight: float = 1.0
    commitment_weight: float = 0.25

    def build(self) -> "FactorizedQuantizer":
        """The module these settings describe."""
        return FactorizedQuantizer(self)


class FactorizedQuantizer(Quantizer):
    """Latents go through a linear layer onto the sphere; the code at the least angle is theirs.

    Embeddings are that code on its way back through another linear layer.
    """

    def __init__(self, config: FactorizedQuantizerConfig) -> None:
        super().__init__(config)
        if config.factor_dim < 1:
            raise ValueError(f"expected a factor_dim of at least 1, found {config.factor_dim}")
        self.down = nn.Conv2d(config.code_dim, config.factor_dim, 1)
        self.codebook = nn.Parameter(torch.randn(config.num_codes, config.factor_dim))
        self.up = nn.Conv2d(config.factor_dim, config.code_dim, 1)
        weights = {"codebook": config.codebook_weight, "commitment": config.commitment_weight}
        self.loss_weights = {name: w for name, w in weights.items() if w != 0}

    def forward(self, latents: Tensor) -> Quantized:
        """Latents (B, C, h, w) to codes, embeddings (B, C, h, w) and losses, all in fp32.

        The losses compare unit vectors: means over all elements, as the plain quantizer's.
        """
        with torch.autocast(latents.device.type, enabled=False):
            units = self._units(latents.float())
            codes = self._nearest(units)
            found = self._embed(codes)
            embeddings = self.up(straight_through(units, found))
            if not self.training:
                return Quantized(codes, embeddings, {})
            losses = {
                "codebook": codebook_loss(units, found),
                "commitment": commitment_loss(units, found),
            }
            losses = {name: loss for name, loss in losses.items() if name in self.loss_weights}
        return Quantized(codes, embeddings, losses)

    @torch.no_grad()
    def encode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) to codes (B, h, w)."""
        with torch.autocast(latents.device.type, enabled=False):
            return self._nearest(self._units(latents.float()))

    def lookup(self, codes: Tensor) -> Tensor:
        """Codes (B, h, w) to embeddings (B, C, h, w)."""
        with torch.autocast(codes.device.type, enabled=False):
            return self.up(self._embed(codes))

    @torch.no_grad()
    def initialize(self, latents: Tensor) -> None:
        """Take K different positions of latents (B, C, h, w), each moved a little."""
        rows = self._units(latents.float()).permute(0, 2, 3, 1).flatten(0, 2)
        order = torch.randperm(len(rows)).to(rows.device)
        picked = rows[order.repeat(-(-self.num_codes // len(rows)))[: self.num_codes]]
        self.codebook.copy_(picked + torch.randn(picked.shape).to(picked) * 0.01)

    def code_facts(self) -> dict[str, object]:
        """The width of the codebook decides codes too."""
        return super().code_facts() | {"factor_dim": self.codebook.shape[1]}

    def _units(self, latents: Tensor) -> Tensor:
        return F.normalize(self.down(latents), dim=1)

    def _nearest(self, units: Tensor) -> Tensor:
        b, _, h, w = units.shape
        rows = units.detach().permute(0, 2, 3, 1).flatten(0, 2)
        return nearest_code(rows, F.normalize(self.codebook.detach(), dim=1)).view(b, h, w)

    def _embed(self, codes: Tensor) -> Tensor:
        unit = F.normalize(F.embedding(codes, self.codebook), dim=-1)
        return unit.permute(0, 3, 1, 2)
