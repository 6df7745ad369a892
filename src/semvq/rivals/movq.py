"""MoVQ (Zheng et al. 2022): VQGAN's encoder, and a decoder whose norms read the embeddings.

Plain norms carry away what a place's code said; here each of the decoder's norms gets it back,
which its authors call spatially conditional normalization. The four codes of a place are
`multichannel`'s.
"""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semvq.rivals.multichannel import MultichannelQuantizerConfig
from semvq.rivals.vqgan import Decoder, Shape, VQGANConfig
from semvq.rivals.vqgan_layers import Norms
from semvq.tokenizer.norm_silu import Norm
from semvq.tokenizer.quantize import QuantizerConfig


@dataclass(frozen=True)
class MoVQConfig(VQGANConfig):
    """VQGAN's shape with modulated norms in the decoder; 78,261,123 parameters.

    The paper's Table 3 has 82.7M, 4.4M (5.4%) more. Where they lie is not known: this is the
    decoder as it is published with later models (Kandinsky 2.1), at VQGAN's sizes.
    """

    quantizer: QuantizerConfig = MultichannelQuantizerConfig()

    def decoder(self) -> nn.Module:
        """See `TokenizerConfig`."""
        return MoVQDecoder(self.shape())


class ModulatedNorm(nn.Module):
    """norm(x) * gain(z) + shift(z), both 1x1 convolutions of the embeddings z at x's size.

    The norm keeps its own affine parameters, as published.
    """

    silu: ClassVar[bool] = False  # whether SiLU follows

    def __init__(self, channels: int, code_dim: int) -> None:
        super().__init__()
        self.norm = Norm(channels)
        self.modulation = nn.Conv2d(code_dim, 2 * channels, 1)

    def forward(self, x: Tensor, embeddings: Tensor) -> Tensor:
        """(B, C, H, W), with sides that are multiples of the embeddings', to the same shape."""
        gain, shift = self.modulation(embeddings).chunk(2, dim=1)
        y = modulated(self.norm(x), gain, shift)
        return F.silu(y) if self.silu else y


class ModulatedNormSiLU(ModulatedNorm):
    """`ModulatedNorm`, then SiLU."""

    silu = True


def modulated(x: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
    """x (B, C, H, W) * gain + shift, both (B, C, h, w) and resized to the nearest; x's layout.

    A place of theirs serves H/h x W/w of x, so it is read that often and never copied. That the
    1x1 convolution goes before the resizing, not after it as published, gives the same values.
    """
    h, w = gain.shape[-2:]
    cells = x.unflatten(3, (w, -1)).unflatten(2, (h, -1))  # (B, C, h, H/h, w, W/w)
    gain, shift = (t[:, :, :, None, :, None] for t in (gain, shift))
    return torch.addcmul(shift, cells, gain).flatten(4).flatten(2, 3)


class MoVQDecoder(Decoder):
    """VQGAN's decoder with every norm modulated by the embeddings, as the quantizer gives them."""

    def __init__(self, shape: Shape) -> None:
        makers = (partial(m, code_dim=shape.code_dim) for m in (ModulatedNormSiLU, ModulatedNorm))
        super().__init__(shape, Norms(*makers))

    def given(self, embeddings: Tensor) -> tuple[Tensor, ...]:
        """What every norm reads beside its map: the embeddings (B, code_dim, h, w)."""
        return (embeddings,)
