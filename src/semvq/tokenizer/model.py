"""The tokenizer: images to codes and back (Sec. 3.1), whatever its networks are.

Encoder and codebook make the code space; its hash names it, so that token caches, generators and
decoders trained on it can be told from others. Phase 2 changes the decoder and keeps the hash.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from semvq.config import Config
from semvq.tokenizer.quantize import Quantized, Quantizer, QuantizerConfig, VectorQuantizerConfig

_PIXEL_RANGE = "[-1, 1]"


@dataclass(frozen=True)
class TokenizerConfig(Config):
    """Base of the tokenizers' settings: images of `resolution`, codes by `quantizer`.

    A subclass makes the networks. The paper's are `conv.ConvTokenizerConfig`.
    """

    factor_is: ClassVar[str] = "pixels per side of a code"  # in words, for messages
    resolution: int = 256
    quantizer: QuantizerConfig = VectorQuantizerConfig()

    @property
    def factor(self) -> int:
        """Pixels per side of a code, f."""
        raise NotImplementedError

    @property
    def num_blocks(self) -> int:
        """How many blocks the networks have; each holds at least one tensor."""
        raise NotImplementedError

    def check(self) -> None:
        """Raise ValueError where no tokenizer can have this shape."""
        if self.resolution < self.factor or self.resolution % self.factor:
            raise ValueError(
                f"expected a resolution that is a multiple of f = {self.factor} "
                f"({self.factor_is}), found {self.resolution}"
            )

    def encoder(self) -> nn.Module:
        """Images (B, 3, H, W) to latents (B, code_dim, H/f, W/f)."""
        raise NotImplementedError

    def decoder(self) -> nn.Module:
        """Embeddings (B, code_dim, h, w) to images (B, 3, fh, fw), not clamped.

        `last_layer` of it is the weight that makes the pixels.
        """
        raise NotImplementedError

    def build(self) -> "Tokenizer":
        """A tokenizer of this shape, randomly initialised."""
        return Tokenizer(self)


class Tokenizer(nn.Module):
    """Encoder, quantizer and decoder; images are float in [-1, 1], (B, 3, H, W)."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        config.check()
        self.config = config
        self.encoder = config.encoder()
        self.quantizer: Quantizer = config.quantizer.build()
        self.decoder = config.decoder()
        self.frozen = False

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of codes (h, w) for an image of the configured resolution.

        Of a quantizer with several codes per place, one grid for each of them, one under the other.
        """
        side = self.config.resolution // self.config.factor
        return self.quantizer.codes_per_place * side, side

    @property
    def num_codes(self) -> int:
        """K, the number of different codes."""
        return self.quantizer.num_codes

    @property
    def last_layer(self) -> Tensor:
        """The decoder's last weight, where adversarial weights are balanced."""
        return self.decoder.last_layer  # type: ignore[return-value]  # a module has many kinds

    def forward(self, images: Tensor) -> tuple[Tensor, Quantized]:
        """Images to (reconstruction, quantized); no losses come from a frozen code space.

        The reconstruction is fp32 under autocast too, for the losses that look at it.
        """
        quantized = self.quantize(images)
        return self.decoder(quantized.embeddings).float(), quantized

    def quantize(self, images: Tensor) -> Quantized:
        """Images to codes, embeddings and the quantizer's losses."""
        if self.frozen:
            codes = self.encode(images)
            with torch.no_grad():
                return Quantized(codes, self.quantizer.lookup(codes), {})
        return self.quantizer(self.latents(images))

    def latents(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) to what the quantizer reads, (B, code_dim, H/f, W/f)."""
        height, width = images.shape[-2:]
        factor = self.config.factor
        if images.ndim != 4 or images.shape[1] != 3 or height % factor or width % factor:
            raise ValueError(
                f"expected images (B, 3, H, W) with sides that are multiples of {factor}, "
                f"found {tuple(images.shape)}"
            )
        return self.encoder(images)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) to codes (B, H/f, W/f), int64."""
        return self.quantizer.encode(self.latents(images))

    def decode(self, codes: Tensor) -> Tensor:
        """Codes (B, h, w) to images, the reconstruction as `forward` gives it: not clamped.

        Values may pass [-1, 1] a little; conversion to pixels clamps. Raises ValueError for other
        shapes; codes outside [0, K) fail in the lookup.
        """
        if codes.ndim != 3 or codes.is_floating_point():
            raise ValueError(
                f"expected integer codes (B, h, w), found {codes.dtype} {tuple(codes.shape)}"
            )
        return self.decoder(self.quantizer.lookup(codes)).float()

    def freeze_code_space(self) -> None:
        """Stop gradients and losses of encoder and codebook; only the decoder trains (phase 2)."""
        self.encoder.requires_grad_(False)
        self.quantizer.requires_grad_(False)
        self.frozen = True

    def code_space_hash(self) -> str:
        """sha256 over all that decides an image's codes: encoder, quantizer, preprocessing.

        The same on every device; the decoder and the training losses have no part in it.
        """
        facts = {
            "quantizer": type(self.quantizer).__name__,
            **self.quantizer.code_facts(),
            "resolution": self.config.resolution,
            "pixel_range": _PIXEL_RANGE,
        }
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
        for part in ("encoder", "quantizer"):
            for name, tensor in sorted(getattr(self, part).state_dict().items()):
                digest.update(f"{part}.{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                flat = tensor.detach().cpu().contiguous().flatten()
                digest.update(flat.view(torch.uint8).numpy().data)
        return digest.hexdigest()
