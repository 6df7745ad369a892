"""Encoder and decoder of Sec. 3.1 as functions of weights by name: contiguous, eager, unfused.

GroupNorm, SiLU and convolution each read and write the whole map; attention makes its scores.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Weights = dict[str, Tensor]


def weights_of(module: nn.Module, dtype: torch.dtype | None = None) -> Weights:
    """Contiguous copies of a module's parameters and buffers by name; `dtype` None keeps theirs."""
    return {
        name: tensor.detach().to(dtype or tensor.dtype).clone().contiguous()
        for name, tensor in module.state_dict().items()
    }


def reconstruct(w: Weights, images: Tensor, heads: int) -> Tensor:
    """Images (B, 3, H, W) through encoder, nearest code and decoder."""
    return decode(w, codes_of(w, latents(w, images)), heads)


def encode(w: Weights, images: Tensor) -> Tensor:
    """Images (B, 3, H, W) to codes int64 (B, h, w)."""
    return codes_of(w, latents(w, images))


def codes_of(w: Weights, found: Tensor) -> Tensor:
    """Nearest code of each latent, (B, C, h, w) to (B, h, w): the whole distance matrix, fp32."""
    b, c, height, width = found.shape
    rows = found.float().permute(0, 2, 3, 1).reshape(-1, c)
    with torch.autocast(found.device.type, enabled=False):
        return torch.cdist(rows, w["quantizer.codebook"]).argmin(1).view(b, height, width)


def lookup(w: Weights, codes: Tensor) -> Tensor:
    """Codes (B, h, w) to embeddings (B, C, h, w)."""
    return w["quantizer.codebook"][codes].permute(0, 3, 1, 2).contiguous()


def decode(w: Weights, codes: Tensor, heads: int) -> Tensor:
    """Codes (B, h, w) to images (B, 3, H, W), fp32."""
    return images_of(w, lookup(w, codes), heads)


def latents(w: Weights, images: Tensor) -> Tensor:
    """Images (B, 3, H, W) to latents (B, C, h, w)."""
    x = conv(w, "encoder.conv_in", images)
    num_levels = count(w, "encoder.levels.{}.blocks.0.conv1.weight")
    for level in range(num_levels):
        x = blocks(w, f"encoder.levels.{level}.blocks", x)
        if level < num_levels - 1:
            x = F.avg_pool2d(x, 2)
    x = blocks(w, "encoder.middle", x)
    return conv(w, "encoder.conv_out", norm_silu(w, "encoder.norm_out", x))


def images_of(w: Weights, embeddings: Tensor, heads: int) -> Tensor:
    """Embeddings (B, C, h, w) to images (B, 3, H, W), fp32."""
    x = conv(w, "decoder.conv_in", embeddings)
    x = blocks(w, "decoder.middle", x)
    for level in range(count(w, "decoder.levels.{}.blocks.0.conv1.weight")):
        name = f"decoder.levels.{level}"
        x = blocks(w, f"{name}.blocks", x)
        for pair in range(count(w, name + ".pairs.{}.regional.qkv.weight")):
            x = block_attention(w, f"{name}.pairs.{pair}.regional", x, heads, dilated=False)
            x = block_attention(w, f"{name}.pairs.{pair}.dilated", x, heads, dilated=True)
        if f"{name}.upsample.weight" in w:
            x = conv(w, f"{name}.upsample", F.interpolate(x, scale_factor=2.0, mode="nearest"))
    return conv(w, "decoder.conv_out", norm_silu(w, "decoder.norm_out", x)).float()


def blocks(w: Weights, name: str, x: Tensor) -> Tensor:
    """Residual blocks one after the other."""
    for i in range(count(w, name + ".{}.conv1.weight")):
        block = f"{name}.{i}"
        h = conv(w, f"{block}.conv1", norm_silu(w, f"{block}.norm1", x))
        h = conv(w, f"{block}.conv2", norm_silu(w, f"{block}.norm2", h))
        # where the width changes the shortcut reads the block's output (MaskGIT's public weights)
        x = h + (conv(w, f"{block}.shortcut", h) if f"{block}.shortcut.weight" in w else x)
    return x


def conv(w: Weights, name: str, x: Tensor) -> Tensor:
    """Convolution of stride 1 that keeps the size."""
    weight = w[f"{name}.weight"]
    return F.conv2d(x, weight, w.get(f"{name}.bias"), padding=weight.shape[-1] // 2)


def norm(w: Weights, name: str, x: Tensor) -> Tensor:
    """GroupNorm of 32 groups, fewer where a group would have under 4 channels."""
    channels = x.shape[1]
    groups = math.gcd(channels, min(32, max(1, channels // 4)))
    return F.group_norm(x, groups, w[f"{name}.weight"], w[f"{name}.bias"], 1e-6)


def norm_silu(w: Weights, name: str, x: Tensor) -> Tensor:
    """GroupNorm, then SiLU: two passes over the map."""
    return F.silu(norm(w, name, x))


def block_attention(w: Weights, name: str, x: Tensor, heads: int, *, dilated: bool) -> Tensor:
    """Residual attention inside square blocks (B, C, H, W), or across them when `dilated`."""
    b, c, height, width = x.shape
    size = block_side(height, width)
    rows, columns = height // size, width // size
    cut = norm(w, f"{name}.norm", x).view(b, c, rows, size, columns, size)
    # (B, block row, block column, row, column, C), whose middle four are two groups of positions
    blocked = cut.permute(0, 2, 4, 3, 5, 1).reshape(b, rows * columns, size * size, c)
    tokens = blocked.transpose(1, 2) if dilated else blocked
    qkv = F.linear(tokens, w[f"{name}.qkv.weight"], w[f"{name}.qkv.bias"])
    q, k, v = qkv.unflatten(-1, (3, heads, c // heads)).movedim(-3, 0).transpose(-2, -3)
    scores = (q @ k.transpose(-1, -2)) / math.sqrt(c // heads)
    mixed = (scores.softmax(-1).to(v.dtype) @ v).transpose(-2, -3).flatten(-2)
    out = F.linear(mixed, w[f"{name}.proj.weight"], w[f"{name}.proj.bias"])
    out = out.transpose(1, 2) if dilated else out
    out = out.reshape(b, rows, columns, size, size, c).permute(0, 5, 1, 3, 2, 4)
    return x + out.reshape(b, c, height, width)


def block_side(height: int, width: int) -> int:
    """Side of an attention block: 8 above 16 px, else 4 or half the side; a divisor of both."""
    side = min(height, width)
    limit = 8 if side > 16 else min(4, max(1, side // 2))
    return max(s for s in range(1, limit + 1) if math.gcd(height, width) % s == 0)


def count(w: Weights, pattern: str) -> int:
    """How many of `pattern`'s numbers 0, 1, … there are weights for."""
    number = 0
    while pattern.format(number) in w:
        number += 1
    return number
