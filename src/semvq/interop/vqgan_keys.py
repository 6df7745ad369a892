"""Names of VQGAN's tensors in files of taming's family, and the sizes that these tell."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from semvq.interop.keys import Names, fill, numbered, size_of
from semvq.interop.networks import ForeignVQGANConfig
from semvq.rivals.vqgan import VQGANConfig
from semvq.tokenizer.model import Tokenizer
from semvq.tokenizer.norm_silu import norm_groups
from semvq.tokenizer.quantize import QuantizerConfig, VectorQuantizerConfig


class Layout(NamedTuple):
    """How a format calls the modules of VQGAN; `{level}` and `{block}` are numbers.

    The encoder's levels are counted from the finest. So are the decoder's with `finest_first`.
    """

    kind: str  # the format in words
    encoder_block: str
    encoder_attention: str
    encoder_resample: str
    decoder_block: str
    decoder_attention: str
    decoder_resample: str
    middle: tuple[str, str, str]  # block, attention, block
    finest_first: bool
    shortcut: str = "nin_shortcut"
    attention_norm: str = "norm"
    qkv: tuple[str, str, str] = ("q", "k", "v")
    proj: str = "proj_out"
    norm_out: str = "norm_out"
    linear: bool = False  # attention is made of linear layers
    codebook: str = "quantize.embedding.weight"
    code_convs: tuple[str, str] = ("encoder.to_latents", "decoder.from_embeddings")  # ours


def sizes(
    layout: Layout, tensors: Mapping[str, Tensor], path: Path, resolution: int
) -> ForeignVQGANConfig:
    """The networks' sizes, from names and shapes alone; codes are the nearest.

    ValueError where a tensor that every such file has is not there.
    """

    def first(name: str) -> int:
        return size_of(tensors, name, path, layout.kind)[0]

    def in_level(name: str, level: int) -> int:
        return numbered(tensors, lambda n: name.format(level=level, block=n))

    block = f"{layout.encoder_block}.conv1.weight"
    attention = f"{layout.encoder_attention}.{layout.attention_norm}.weight"
    first(block.format(level=0, block=0))  # or there is no level to count
    levels = range(numbered(tensors, lambda n: block.format(level=n, block=0)))
    num_codes, code_dim = (*size_of(tensors, layout.codebook, path, layout.kind), 0)[:2]
    return ForeignVQGANConfig(
        resolution=resolution,
        quantizer=nearest(num_codes, code_dim),
        channels=first("encoder.conv_in.weight"),
        widths=tuple(first(block.format(level=n, block=0)) for n in levels),
        blocks_per_level=in_level(block, 0),
        attention_levels=tuple(n for n in levels if in_level(attention, n)),
        middle_attention=f"encoder.{layout.middle[1]}.{layout.attention_norm}.weight" in tensors,
        latent_channels=first("encoder.conv_out.weight"),
    )


def nearest(num_codes: int, code_dim: int) -> QuantizerConfig:
    """The plain rule with the losses of VQGAN: no entropy."""
    return VectorQuantizerConfig(num_codes=num_codes, code_dim=code_dim, entropy_weight=0.0)


def fill_vqgan(
    layout: Layout, config: ForeignVQGANConfig, tensors: Mapping[str, Tensor], path: Path
) -> Tokenizer:
    """The tokenizer of that shape with the file's tensors; ValueError as `fill`."""
    table = names(layout, config)
    with torch.device("meta"):
        tokenizer = simplest(config).build()
    return fill(tokenizer, table, tensors, path, layout.kind)


def simplest(config: ForeignVQGANConfig) -> ForeignVQGANConfig | VQGANConfig:
    """The same networks as `rivals.vqgan` has them, where these are exactly equal."""
    widths = (config.channels, *config.widths)
    multipliers = tuple(width // config.channels for width in config.widths)
    equal = (
        len(config.attention_levels) == 1
        and config.middle_attention
        and config.code_convs
        and config.latent_channels == config.quantizer.code_dim
        and config.widths == tuple(config.channels * m for m in multipliers)
        and all(norm_groups(width) == config.norm_groups for width in widths)
    )
    if not equal:
        return config
    return VQGANConfig(
        resolution=config.resolution,
        quantizer=config.quantizer,
        channels=config.channels,
        multipliers=multipliers,
        blocks_per_level=config.blocks_per_level,
        attention_side=config.resolution // 2 ** config.attention_levels[0],
    )


def names(layout: Layout, config: ForeignVQGANConfig) -> dict[str, Names]:
    """The foreign tensors of each of ours, by our names; ValueError for an impossible shape."""
    config.check()  # first: a stranger's numbers must not make us count to a billion
    table = {"quantizer.codebook": Names((layout.codebook,))}

    def both(ours: str, *theirs: str, linear: bool = False) -> None:
        for part in ("weight", "bias"):
            joined = tuple(f"{name}.{part}" for name in theirs)
            table[f"{ours}.{part}"] = Names(joined, linear and part == "weight")

    def block(ours: str, theirs: str, widens: bool) -> None:
        for part in ("norm1", "conv1", "norm2", "conv2"):
            both(f"{ours}.{part}", f"{theirs}.{part}")
        if widens:
            both(f"{ours}.shortcut", f"{theirs}.{layout.shortcut}")

    def attention(ours: str, theirs: str) -> None:
        both(f"{ours}.norm", f"{theirs}.{layout.attention_norm}")
        both(f"{ours}.qkv", *(f"{theirs}.{name}" for name in layout.qkv), linear=layout.linear)
        both(f"{ours}.proj", f"{theirs}.{layout.proj}", linear=layout.linear)

    def middle(stack: str) -> None:
        own, (before, between, after) = f"{stack}.middle.layers", layout.middle
        block(f"{own}.0", f"{stack}.{before}", False)
        if config.middle_attention:
            attention(f"{own}.1", f"{stack}.{between}")
        block(f"{own}.{1 + config.middle_attention}", f"{stack}.{after}", False)

    depth = len(config.widths)
    for stack in ("encoder", "decoder"):
        decodes = stack == "decoder"
        blocks, attends, resample = (
            (layout.decoder_block, layout.decoder_attention, layout.decoder_resample)
            if decodes
            else (layout.encoder_block, layout.encoder_attention, layout.encoder_resample)
        )
        width = config.widths[-1] if decodes else config.channels
        for place in range(depth):  # in the order of execution
            level = depth - 1 - place if decodes else place
            number = level if decodes and layout.finest_first else place
            own, at, j = f"{stack}.levels.{place}", 0, 0
            for j in range(config.blocks_per_level + decodes):
                widens, width = width != config.widths[level], config.widths[level]
                block(f"{own}.layers.{at}", blocks.format(level=number, block=j), widens)
                if level in config.attention_levels:
                    at += 1
                    attention(f"{own}.layers.{at}", attends.format(level=number, block=j))
                at += 1
            if place < depth - 1:
                both(f"{own}.resample", resample.format(level=number))
        middle(stack)
        both(f"{stack}.conv_in", f"{stack}.conv_in")
        both(f"{stack}.norm_out", f"{stack}.{layout.norm_out}")
        both(f"{stack}.conv_out", f"{stack}.conv_out")
    for ours, theirs in zip(layout.code_convs, ("quant_conv", "post_quant_conv")):
        both(ours, theirs)
    return table
