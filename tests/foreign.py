"""Other people's tokenizers in plain functions, from their published layouts: oracles of convert.

`Weights` makes a random tensor where a name is first used, so that one forward pass writes the
whole state dict. Nothing here is shared with `semvq.interop`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

MULTIPLIERS = (1, 2)
LAST = len(MULTIPLIERS) - 1


class Weights(dict):
    """A state dict that grows by being used."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.random = torch.Generator().manual_seed(seed)

    def of(self, name: str, *shape: int, near: float = 0.0, scale: float = 1.0) -> Tensor:
        if name not in self:
            self[name] = near + scale * torch.randn(shape, generator=self.random)
        assert self[name].shape == shape, name
        return self[name]

    def conv(
        self, name: str, x: Tensor, out: int, side: int = 3, stride: int = 1, bias: bool = True
    ) -> Tensor:
        into = x.shape[1]
        weight = self.of(f"{name}.weight", out, into, side, side, scale=(into * side**2) ** -0.5)
        b = self.of(f"{name}.bias", out, scale=0.1) if bias else None
        return F.conv2d(x, weight, b, stride, padding=side // 2 if stride == 1 else 0)

    def linear(self, name: str, x: Tensor) -> Tensor:
        """(B, N, C) to the same."""
        weight = self.of(f"{name}.weight", x.shape[2], x.shape[2], scale=x.shape[2] ** -0.5)
        return x @ weight.T + self.of(f"{name}.bias", x.shape[2], scale=0.1)

    def norm(self, name: str, x: Tensor, groups: int = 32) -> Tensor:
        gain = self.of(f"{name}.weight", x.shape[1], near=1, scale=0.2)
        return F.group_norm(x, groups, gain, self.of(f"{name}.bias", x.shape[1], scale=0.2), 1e-6)

    def residual(self, name: str, x: Tensor, out: int, shortcut: str, groups: int = 32) -> Tensor:
        h = self.conv(f"{name}.conv1", swish(self.norm(f"{name}.norm1", x, groups)), out)
        h = self.conv(f"{name}.conv2", swish(self.norm(f"{name}.norm2", h, groups)), out)
        return h + (x if x.shape[1] == out else self.conv(f"{name}.{shortcut}", x, out, side=1))

    def attention(self, name: str, x: Tensor) -> Tensor:
        h = self.norm(f"{name}.norm", x)
        q, k, v = (self.conv(f"{name}.{part}", h, x.shape[1], side=1).flatten(2) for part in "qkv")
        share = torch.softmax(q.transpose(1, 2) @ k * x.shape[1] ** -0.5, dim=2)  # (B, from, to)
        return x + self.conv(
            f"{name}.proj_out", (v @ share.transpose(1, 2)).view_as(h), x.shape[1], 1
        )

    def linear_attention(self, name: str, x: Tensor, groups: int) -> Tensor:
        h = self.norm(f"{name}.group_norm", x, groups).flatten(2).transpose(1, 2)
        q, k, v = (self.linear(f"{name}.to_{part}", h) for part in "qkv")
        h = torch.softmax(q @ k.transpose(1, 2) * x.shape[1] ** -0.5, dim=2) @ v
        return x + self.linear(f"{name}.to_out.0", h).transpose(1, 2).reshape(x.shape)


def swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")


def nearest(z: Tensor, book: Tensor) -> Tensor:
    """(B, C, h, w) to codes (B, h, w), by all distances in float64."""
    rows = z.permute(0, 2, 3, 1).double()
    return (rows[..., None, :] - book.double()).square().sum(-1).argmin(-1)


class Oracle:
    """A tokenizer: `encode` images in [-1, 1] to codes, `decode` codes to images in [-1, 1]."""

    codes, width, latent = 24, 6, 6

    def __init__(self, channels: int = 128, attends: tuple[int, ...] = (LAST,)) -> None:
        self.weights, self.channels, self.attends = Weights(), channels, attends
        self.decode(self.encode(torch.zeros(1, 3, 8, 8)))

    @property
    def book(self) -> Tensor:
        return self.weights.of("quantize.embedding.weight", self.codes, self.width)

    def encode(self, images: Tensor) -> Tensor:
        return nearest(
            self.weights.conv("quant_conv", self.encoded(images), self.width, 1), self.book
        )

    def decode(self, codes: Tensor) -> Tensor:
        z = F.embedding(codes, self.book).permute(0, 3, 1, 2)
        return self.decoded(self.weights.conv("post_quant_conv", z, self.latent, 1))

    def encoded(self, images: Tensor) -> Tensor:
        raise NotImplementedError

    def decoded(self, z: Tensor) -> Tensor:
        raise NotImplementedError


class Taming(Oracle):
    """Decoder levels are numbered from the finest; two residual blocks in each, one in encoder."""

    def encoded(self, images: Tensor) -> Tensor:
        w, c = self.weights, self.channels
        h = w.conv("encoder.conv_in", images, c)
        for level, m in enumerate(MULTIPLIERS):
            h = w.residual(f"encoder.down.{level}.block.0", h, c * m, "nin_shortcut")
            if level in self.attends:
                h = w.attention(f"encoder.down.{level}.attn.0", h)
            if level < LAST:
                h = F.pad(h, (0, 1, 0, 1))
                h = w.conv(f"encoder.down.{level}.downsample.conv", h, c * m, stride=2)
        h = self.middle("encoder", h)
        return w.conv("encoder.conv_out", swish(w.norm("encoder.norm_out", h)), self.latent)

    def decoded(self, z: Tensor) -> Tensor:
        w, c = self.weights, self.channels
        h = self.middle("decoder", w.conv("decoder.conv_in", z, c * MULTIPLIERS[-1]))
        for level in reversed(range(LAST + 1)):
            for block in range(2):
                name = f"decoder.up.{level}.block.{block}"
                h = w.residual(name, h, c * MULTIPLIERS[level], "nin_shortcut")
                if level in self.attends:
                    h = w.attention(f"decoder.up.{level}.attn.{block}", h)
            if level:
                name = f"decoder.up.{level}.upsample.conv"
                h = w.conv(name, doubled(h), c * MULTIPLIERS[level])
        return w.conv("decoder.conv_out", swish(w.norm("decoder.norm_out", h)), 3)

    def middle(self, stack: str, h: Tensor) -> Tensor:
        w = self.weights
        h = w.residual(f"{stack}.mid.block_1", h, h.shape[1], "")
        h = w.attention(f"{stack}.mid.attn_1", h)
        return w.residual(f"{stack}.mid.block_2", h, h.shape[1], "")


class LlamaGen(Oracle):
    """Decoder levels are numbered in their order; codes and latents are used at length one."""

    latent = 16

    def encode(self, images: Tensor) -> Tensor:
        z = self.weights.conv("quant_conv", self.encoded(images), self.width, 1)
        return nearest(F.normalize(z, dim=1), F.normalize(self.book, dim=1))

    def decode(self, codes: Tensor) -> Tensor:
        z = F.embedding(codes, F.normalize(self.book, dim=1)).permute(0, 3, 1, 2)
        return self.decoded(self.weights.conv("post_quant_conv", z, self.latent, 1))

    def encoded(self, images: Tensor) -> Tensor:
        w, c = self.weights, self.channels
        h = w.conv("encoder.conv_in", images, c)
        for level, m in enumerate(MULTIPLIERS):
            name = f"encoder.conv_blocks.{level}"
            h = w.residual(f"{name}.res.0", h, c * m, "nin_shortcut")
            if level == LAST:
                h = w.attention(f"{name}.attn.0", h)
            else:
                h = w.conv(f"{name}.downsample.conv", F.pad(h, (0, 1, 0, 1)), c * m, stride=2)
        h = self.middle("encoder", h)
        return w.conv("encoder.conv_out", swish(w.norm("encoder.norm_out", h)), self.latent)

    def decoded(self, z: Tensor) -> Tensor:
        w, c = self.weights, self.channels
        h = self.middle("decoder", w.conv("decoder.conv_in", z, c * MULTIPLIERS[-1]))
        for place, m in enumerate(reversed(MULTIPLIERS)):
            name = f"decoder.conv_blocks.{place}"
            for block in range(2):
                h = w.residual(f"{name}.res.{block}", h, c * m, "nin_shortcut")
                if place == 0:
                    h = w.attention(f"{name}.attn.{block}", h)
            if place < LAST:
                h = w.conv(f"{name}.upsample.conv", doubled(h), c * m)
        return w.conv("decoder.conv_out", swish(w.norm("decoder.norm_out", h)), 3)

    def middle(self, stack: str, h: Tensor) -> Tensor:
        w = self.weights
        h = w.residual(f"{stack}.mid.0", h, h.shape[1], "")
        h = w.attention(f"{stack}.mid.1", h)
        return w.residual(f"{stack}.mid.2", h, h.shape[1], "")


class MaskGIT(Oracle):
    """Images in [0, 1], hardly a bias, shortcuts of the block's output, average pooling."""

    def encode(self, images: Tensor) -> Tensor:
        w, c = self.weights, self.channels
        h = w.conv("encoder.conv_in", (images + 1) / 2, c, bias=False)
        for level, m in enumerate(MULTIPLIERS):
            h = self.block(f"encoder.down.{level}.block.0", h, c * m)
            if level < LAST:
                h = F.avg_pool2d(h, 2)
        h = self.block("encoder.mid.0", h, h.shape[1])
        h = w.conv("encoder.conv_out", swish(w.norm("encoder.norm_out", h)), self.width, 1)
        return nearest(h, self.book)

    def decode(self, codes: Tensor) -> Tensor:
        w, c = self.weights, self.channels
        z = F.embedding(codes, self.book).permute(0, 3, 1, 2)
        h = w.conv("decoder.conv_in", z, c * MULTIPLIERS[-1])
        h = self.block("decoder.mid.0", h, h.shape[1])
        for level in reversed(range(LAST + 1)):
            h = self.block(f"decoder.up.{level}.block.0", h, c * MULTIPLIERS[level])
            if level:
                h = w.conv(f"decoder.up.{level}.upsample_conv", doubled(h), h.shape[1])
        return w.conv("decoder.conv_out", swish(w.norm("decoder.norm_out", h)), 3) * 2 - 1

    def block(self, name: str, x: Tensor, out: int) -> Tensor:
        w = self.weights
        h = w.conv(f"{name}.conv1", swish(w.norm(f"{name}.norm1", x)), out, bias=False)
        h = w.conv(f"{name}.conv2", swish(w.norm(f"{name}.norm2", h)), out, bias=False)
        same = x.shape[1] == out
        return h + (x if same else w.conv(f"{name}.nin_shortcut", h, out, 1, bias=False))


class Diffusers(Oracle):
    """Decoder levels are numbered in their order; attention of linear layers, or none."""

    latent, groups = 4, 8

    def __init__(self, attends: tuple[int, ...] = (), middle: bool = True) -> None:
        self.has_middle = middle
        super().__init__(channels=16, attends=attends)

    @property
    def settings(self) -> dict[str, object]:
        kinds = ["Attn" * (level in self.attends) for level in range(LAST + 1)]
        return {
            "_class_name": "VQModel", "_diffusers_version": "0.30.0", "in_channels": 3,
            "out_channels": 3, "act_fn": "silu", "layers_per_block": 1, "sample_size": 32,
            "block_out_channels": [self.channels * m for m in MULTIPLIERS],
            "down_block_types": [f"{kind}DownEncoderBlock2D" for kind in kinds],
            "up_block_types": [f"{kind}UpDecoderBlock2D" for kind in reversed(kinds)],
            "latent_channels": self.latent, "vq_embed_dim": self.width,
            "num_vq_embeddings": self.codes, "norm_num_groups": self.groups,
            "mid_block_add_attention": self.has_middle, "lookup_from_codebook": True,
        }  # fmt: skip

    def encoded(self, images: Tensor) -> Tensor:
        w, c = self.weights, self.channels
        h = w.conv("encoder.conv_in", images, c)
        for level, m in enumerate(MULTIPLIERS):
            name = f"encoder.down_blocks.{level}"
            h = self.block(f"{name}.resnets.0", h, c * m)
            if level in self.attends:
                h = w.linear_attention(f"{name}.attentions.0", h, self.groups)
            if level < LAST:
                h = w.conv(f"{name}.downsamplers.0.conv", F.pad(h, (0, 1, 0, 1)), c * m, stride=2)
        h = self.middle("encoder", h)
        h = swish(w.norm("encoder.conv_norm_out", h, self.groups))
        return w.conv("encoder.conv_out", h, self.latent)

    def decoded(self, z: Tensor) -> Tensor:
        w, c = self.weights, self.channels
        h = self.middle("decoder", w.conv("decoder.conv_in", z, c * MULTIPLIERS[-1]))
        for place, m in enumerate(reversed(MULTIPLIERS)):
            name = f"decoder.up_blocks.{place}"
            for block in range(2):
                h = self.block(f"{name}.resnets.{block}", h, c * m)
                if LAST - place in self.attends:
                    h = w.linear_attention(f"{name}.attentions.{block}", h, self.groups)
            if place < LAST:
                h = w.conv(f"{name}.upsamplers.0.conv", doubled(h), c * m)
        h = swish(w.norm("decoder.conv_norm_out", h, self.groups))
        return w.conv("decoder.conv_out", h, 3)

    def block(self, name: str, x: Tensor, out: int) -> Tensor:
        return self.weights.residual(name, x, out, "conv_shortcut", self.groups)

    def middle(self, stack: str, h: Tensor) -> Tensor:
        h = self.block(f"{stack}.mid_block.resnets.0", h, h.shape[1])
        if self.has_middle:
            name = f"{stack}.mid_block.attentions.0"
            h = self.weights.linear_attention(name, h, self.groups)
        return self.block(f"{stack}.mid_block.resnets.1", h, h.shape[1])
