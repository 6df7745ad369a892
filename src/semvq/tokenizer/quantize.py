"""Quantizers: from latents to codes (Eq. 1), and the plain nearest-code rule with its losses.

To try another rule, subclass `Quantizer` and `QuantizerConfig`; nothing else has to know. Usage
regularisation by soft entropy is Sec. 3.4's, with the sign of decision D1 and the scale of D2.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from semvq.config import Config
from semvq.losses.codebook import (
    codebook_loss,
    commitment_loss,
    distance_scale,
    soft_usage,
    usage_entropy,
)
from semvq.precision import fp32_products
from semvq.tokenizer.nearest import nearest_code


class Quantized(NamedTuple):
    """What a quantizer makes of latents (B, C, h, w).

    `codes` int64 (B, h, w); `embeddings` (B, C, h, w), whose gradient passes straight through to
    the latents; `losses`, unweighted scalars by name.
    """

    codes: Tensor
    embeddings: Tensor
    losses: dict[str, Tensor]


@dataclass(frozen=True)
class QuantizerConfig(Config):
    """Base of the quantizers' settings: `num_codes` is K, `code_dim` the width of a code."""

    num_codes: int = 1024
    code_dim: int = 256

    def build(self) -> "Quantizer":
        """The module these settings describe."""
        raise NotImplementedError


def identity(x: Tensor) -> Tensor:
    """The mean over one process."""
    return x


class Quantizer(nn.Module, ABC):
    """A rule from latents to codes and back.

    `loss_weights` holds the factor of every loss that `forward` returns. `all_mean` averages a
    tensor over processes, differentiably; one process leaves it as the identity.
    """

    has_codes: ClassVar[bool] = True  # False for a rule that does not quantize at all
    codes_per_place = 1  # several: codes (B, D * h, w), a grid for each of D, one under the other

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        if config.num_codes < 1 or config.code_dim < 1:
            raise ValueError(
                "expected num_codes and code_dim of at least 1, found "
                f"{config.num_codes} and {config.code_dim}"
            )
        self.num_codes = config.num_codes
        self.code_dim = config.code_dim
        self.loss_weights: dict[str, float] = {}
        self.all_mean: Callable[[Tensor], Tensor] = identity

    @abstractmethod
    def forward(self, latents: Tensor) -> Quantized:
        """Latents (B, C, h, w) to codes, straight-through embeddings and losses."""

    @abstractmethod
    def encode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) to codes (B, h, w)."""

    @abstractmethod
    def lookup(self, codes: Tensor) -> Tensor:
        """Codes (B, h, w) to embeddings (B, C, h, w)."""

    def mean_assignment(self, latents: Tensor) -> Tensor | None:
        """How much of latents (B, C, h, w) each code takes softly, (K,), summing to 1.

        None where a rule knows no soft assignment.
        """
        return None

    def initialize(self, latents: Tensor) -> None:  # noqa: B027
        """Set the codes from latents of real images; does nothing where a rule has no need."""

    def state(self) -> dict[str, Tensor]:
        """This process's tensors, (n, ...), beside the weights, that a resume writes in place."""
        return {}

    def code_facts(self) -> dict[str, Any]:
        """What decides codes beside the tensors, JSON-ready; part of the code-space hash.

        Extend it where a rule has settings of its own that change codes.
        """
        return {"num_codes": self.num_codes, "code_dim": self.code_dim}

    def total(self, losses: dict[str, Tensor]) -> Tensor:
        """Weighted sum of the losses `forward` returned."""
        weighted = (self.loss_weights[name] * loss for name, loss in losses.items())
        return sum(weighted, torch.zeros(()))


@dataclass(frozen=True)
class VectorQuantizerConfig(QuantizerConfig):
    """Nearest code by L2 (Eq. 1), with the losses of Eq. 2 and the usage entropy of Sec. 3.4.

    `entropy_weight` is the paper's gamma; positive raises usage (D1), negative is the printed
    sign. The softmax temperature is `entropy_temperature` times the distance's own spread in the
    batch with `entropy_scale="data"` (D2), or taken as it is with "none"; the paper as printed is
    "l2", 1.0, "none" and a negative weight.
    """

    codebook_weight: float = 1.0
    commitment_weight: float = 0.25
    entropy_weight: float = 0.01
    entropy_distance: Literal["l2", "l2_squared"] = "l2_squared"
    entropy_temperature: float = 0.03
    entropy_scale: Literal["data", "none"] = "data"

    def build(self) -> "VectorQuantizer":
        """The module these settings describe."""
        return VectorQuantizer(self)


class VectorQuantizer(Quantizer):
    """A learned codebook (K, C); each latent becomes its nearest code, ties to the lowest index."""

    def __init__(self, config: VectorQuantizerConfig) -> None:
        super().__init__(config)
        self.config = config
        # Variance-scaling uniform as in MaskGIT; `initialize` replaces it by real latents.
        bound = math.sqrt(3 / config.num_codes)
        codebook = torch.empty(config.num_codes, config.code_dim).uniform_(-bound, bound)
        self.codebook = nn.Parameter(codebook)
        weights = {
            "codebook": config.codebook_weight,
            "commitment": config.commitment_weight,
            "entropy": config.entropy_weight,
        }
        self.loss_weights = {name: w for name, w in weights.items() if w != 0}

    def forward(self, latents: Tensor) -> Quantized:
        """Latents (B, C, h, w) to codes, straight-through embeddings and losses, all in fp32.

        The losses are "codebook" and "commitment", mean squared differences, and "entropy", minus
        the entropy of the soft usage in nats: lower is smoother (D1). Those of weight 0 are left
        out, and all of them in evaluation mode: the entropy waits for other processes. Its products
        may be TF32 where the latents come in bfloat16.
        """
        with torch.autocast(latents.device.type, enabled=False):
            # bfloat16 has rounded the latents eight times as coarsely as TF32 would
            products = "high" if latents.dtype == torch.bfloat16 else "highest"
            latents = latents.float()
            codes = self.encode(latents)
            embeddings = self.lookup(codes)
            if not self.training:
                return Quantized(codes, straight_through(latents, embeddings), {})
            losses = {
                "codebook": codebook_loss(latents, embeddings),
                "commitment": commitment_loss(latents, embeddings),
            }
            if "entropy" in self.loss_weights:
                with fp32_products(products):
                    losses["entropy"] = -self._usage_entropy(latents)
            losses = {name: loss for name, loss in losses.items() if name in self.loss_weights}
        return Quantized(codes, straight_through(latents, embeddings), losses)

    @torch.no_grad()
    def encode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) to codes (B, h, w)."""
        b, _, h, w = latents.shape
        return nearest_code(flatten(latents), self.codebook).reshape(b, h, w)

    def lookup(self, codes: Tensor) -> Tensor:
        """Codes (B, h, w) to embeddings (B, C, h, w)."""
        return nn.functional.embedding(codes, self.codebook).permute(0, 3, 1, 2)

    @torch.no_grad()
    def initialize(self, latents: Tensor) -> None:
        """Take K different positions of latents (B, C, h, w) as codes, by torch's global RNG.

        With fewer positions than codes they are used again, moved by a hundredth of their spread.
        """
        flat = flatten(latents)
        order = torch.randperm(len(flat)).to(flat.device)
        picked = flat[order.repeat(-(-self.num_codes // len(flat)))[: self.num_codes]]
        noise = torch.randn(picked.shape).to(flat) * flat.std(0, correction=0) * 0.01
        noise[: len(flat)] = 0
        self.codebook.copy_(picked + noise)

    def mean_assignment(self, latents: Tensor) -> Tensor:
        """D-bar of Sec. 3.4, before the mean over processes; see `Quantizer`."""
        config, flat = self.config, flatten(latents)
        temperature: float | Tensor = config.entropy_temperature
        if config.entropy_scale == "data":
            scale = distance_scale(flat, self.codebook, config.entropy_distance)
            temperature = temperature * self.all_mean(scale)
        return soft_usage(flat, self.codebook, config.entropy_distance, temperature)

    def _usage_entropy(self, latents: Tensor) -> Tensor:
        return usage_entropy(self.all_mean(self.mean_assignment(latents)))


@dataclass(frozen=True)
class UnquantizedConfig(QuantizerConfig):
    """No quantization: a plain autoencoder, from which phase 1 can start (as in VQFR).

    A codebook that starts from the latents of such an encoder starts well; `code_dim` is theirs.
    """

    num_codes: int = 1

    def build(self) -> "Unquantized":
        """The module these settings describe."""
        return Unquantized(self)


class Unquantized(Quantizer):
    """Hands the latents on as they are; there are no codes to ask for."""

    has_codes = False

    def forward(self, latents: Tensor) -> Quantized:
        """Latents (B, C, h, w) as embeddings; every code is the only one there is."""
        b, _, h, w = latents.shape
        codes = torch.zeros(b, h, w, dtype=torch.int64, device=latents.device)
        return Quantized(codes, latents, {})

    def encode(self, latents: Tensor) -> Tensor:
        """ValueError: see `lookup`."""
        raise ValueError(_NO_CODES)

    def lookup(self, codes: Tensor) -> Tensor:
        """ValueError: the latents cannot be had back from codes."""
        raise ValueError(_NO_CODES)


_NO_CODES = (
    "expected a tokenizer with codes, found a plain autoencoder; train a phase 1 on top of it "
    "with --upstream RUN"
)


def straight_through(latents: Tensor, embeddings: Tensor) -> Tensor:
    """The value of `embeddings`, to the bit, with the gradient of `latents`."""
    return embeddings.detach() + (latents - latents.detach())


def flatten(latents: Tensor) -> Tensor:
    """Latents (B, C, h, w) to rows (B*h*w, C) in float32."""
    return latents.float().permute(0, 2, 3, 1).flatten(0, 2)
