"""The tokenizer: images to codes and back (Sec. 3.1), and its step into phase 2 (Sec. 3.4).

Encoder and codebook make the code space; its hash names it, so that token caches, generators and
decoders trained on it can be told from others. Phase 2 changes the decoder and keeps the hash.
"""

import hashlib
import json
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from semvq.config import Config, differences
from semvq.tokenizer.conv import Decoder, Encoder, ResidualBlock
from semvq.tokenizer.quantize import Quantized, Quantizer, QuantizerConfig, VectorQuantizerConfig

MAX_BLOCKS = 64  # of one kind, per level
_PIXEL_RANGE = "[-1, 1]"


@dataclass(frozen=True)
class TokenizerConfig(Config):
    """Shape of a tokenizer; the defaults are the paper's baseline (54,515,587 parameters).

    The downsampling factor is f = 2**(len(multipliers) - 1). `decoder_extra_blocks` is 2 for
    "+Conv x2" (Table 1); `decoder_attention_pairs` is 1 for SeQ-GAN and 2 for "+Attention x2",
    each per decoder level.
    """

    resolution: int = 256
    channels: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    blocks_per_level: int = 2
    middle_blocks: int = 2
    decoder_extra_blocks: int = 0
    decoder_attention_pairs: int = 0
    attention_heads: int = 4
    quantizer: QuantizerConfig = VectorQuantizerConfig()

    @property
    def factor(self) -> int:
        """Pixels per side of a code, f."""
        return 2 ** (len(self.multipliers) - 1)

    def check(self) -> None:
        """Raise ValueError where no tokenizer can have this shape.

        The upper bounds are far above any use; they stop a broken file from filling the memory.
        """
        if not self.multipliers or min(self.multipliers) < 1:
            raise ValueError(f"expected multipliers of 1 and more, found {self.multipliers}")
        _at_most(len(self.multipliers), 1, 10, "a number of multipliers")
        _at_most(self.channels * max(self.multipliers), 1, 65_536, "channels x multiplier")
        for name in ("blocks_per_level", "attention_heads"):
            _at_most(getattr(self, name), 1, MAX_BLOCKS, name)
        for name in ("middle_blocks", "decoder_extra_blocks", "decoder_attention_pairs"):
            _at_most(getattr(self, name), 0, MAX_BLOCKS, name)
        if self.resolution < self.factor or self.resolution % self.factor:
            raise ValueError(
                f"expected a resolution that is a multiple of f = {self.factor} (two to the "
                f"number of multipliers less one), found {self.resolution}"
            )

    def build(self) -> "Tokenizer":
        """A tokenizer of this shape, randomly initialised."""
        return Tokenizer(self)


def _at_most(value: int, low: int, high: int, what: str) -> None:
    if not low <= value <= high:
        raise ValueError(f"expected {what} in [{low}, {high}], found {value}")


class Tokenizer(nn.Module):
    """Encoder, quantizer and decoder; images are float in [-1, 1], (B, 3, H, W)."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        config.check()
        self.config = config
        widths = config.channels, config.multipliers
        shape = *widths, config.blocks_per_level, config.middle_blocks, config.quantizer.code_dim
        self.encoder = Encoder(*shape)
        self.quantizer: Quantizer = config.quantizer.build()
        self.decoder = Decoder(
            *shape,
            extra_blocks=config.decoder_extra_blocks,
            num_pairs=config.decoder_attention_pairs,
            heads=config.attention_heads,
        )
        self.frozen = False

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of codes (h, w) for an image of the configured resolution."""
        side = self.config.resolution // self.config.factor
        return side, side

    @property
    def num_codes(self) -> int:
        """K, the number of different codes."""
        return self.quantizer.num_codes

    @property
    def last_layer(self) -> Tensor:
        """The decoder's last weight (3, channels, 3, 3), where adversarial weights are balanced."""
        return self.decoder.conv_out.weight

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


def with_quantizer(tokenizer: Tokenizer, config: QuantizerConfig) -> Tokenizer:
    """The same encoder and decoder around a new quantizer, whose codes are still to be made.

    Raises ValueError where the width of the codes is another.
    """
    found = tokenizer.quantizer.code_dim
    if config.code_dim != found:
        raise ValueError(
            f"the upstream run's latents are {found} wide, this quantizer's codes are "
            f"{config.code_dim}; give --set task.tokenizer.quantizer.code_dim={found}"
        )
    new = replace(tokenizer.config, quantizer=config).build()
    new.encoder.load_state_dict(tokenizer.encoder.state_dict())
    new.decoder.load_state_dict(tokenizer.decoder.state_dict())
    return new.to(tokenizer.last_layer.device).train(tokenizer.training)


def upgrade_decoder(tokenizer: Tokenizer, config: TokenizerConfig) -> Tokenizer:
    """A tokenizer with the same code space and the same or a larger decoder (phase 2, Sec. 3.4).

    The new decoder takes over every parameter of the old one, and what it has beyond starts as
    the identity: its first reconstruction is the old one's. Raises ValueError where `config`
    differs in more than the decoder's extra blocks and attention, or has fewer of them.
    """
    _check_upgrade(tokenizer.config, config)
    new = config.build().to(tokenizer.last_layer.device)
    missing, unexpected = new.load_state_dict(tokenizer.state_dict(), strict=False)
    assert not unexpected, unexpected
    # New attention starts at zero output by itself; new residual blocks have to be told.
    for name, module in new.named_modules():
        if isinstance(module, ResidualBlock) and f"{name}.conv2.weight" in missing:
            module.zero_output()
    return new.train(tokenizer.training)


def _check_upgrade(old: TokenizerConfig, new: TokenizerConfig) -> None:
    grows = ("decoder_extra_blocks", "decoder_attention_pairs")
    for name in grows:
        if getattr(new, name) < getattr(old, name):
            raise ValueError(
                f"expected {name} of at least {getattr(old, name)}, found {getattr(new, name)}"
            )
    allowed = (*grows, "attention_heads") if not old.decoder_attention_pairs else grows
    changed = [d for d in differences(new, old) if _key(d) not in allowed and not _is_loss(d)]
    if changed:
        raise ValueError("the upstream tokenizer is of another shape: " + "; ".join(changed))


def _key(difference: str) -> str:
    return difference.partition(":")[0]


def _is_loss(difference: str) -> bool:
    """Whether a difference is in the quantizer's losses, which a frozen code space never uses."""
    part, _, name = _key(difference).partition(".")
    return part == "quantizer" and (name.endswith("_weight") or name.startswith("entropy_"))
