"""The PyTorch port of MaskGIT's VQGAN: `maskgit-vqgan-imagenet-f16-256.bin` and its like.

The paper's own networks (`tokenizer.conv`), but with images in [0, 1].
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from semvq.interop.converted import Converted
from semvq.interop.keys import Names, fill, numbered, size_of
from semvq.interop.networks import ZERO_TO_ONE, UnitRangeConfig
from semvq.interop.opening import open_weights
from semvq.interop.vqgan_keys import nearest
from semvq.tokenizer.norm_silu import norm_groups

KIND = "MaskGIT's VQGAN"
GROUPS = 32  # of every norm


def convert(path: Path, resolution: int) -> Converted:
    """The tokenizer in `path`; ValueError where the file is not one, by name of the tensor."""
    opened = open_weights(path, inside=("state_dict", "model"))
    config = sizes(opened.tensors, path, resolution)
    table = names(config)
    with torch.device("meta"):
        tokenizer = config.build()
    fill(tokenizer, table, opened.tensors, path, KIND)
    return Converted(tokenizer, ZERO_TO_ONE, opened.sha256, opened.left_out)


def sizes(tensors: Mapping[str, Tensor], path: Path, resolution: int) -> UnitRangeConfig:
    """The networks' sizes, from names and shapes; ValueError where ours cannot be of them."""

    def first(name: str) -> int:
        return size_of(tensors, name, path, KIND)[0]

    def count(template: str) -> int:
        return numbered(tensors, template.format)

    channels = first("encoder.conv_in.weight")
    first("encoder.down.0.block.0.conv1.weight")  # or there is no level to count
    depth = count("encoder.down.{}.block.0.conv1.weight")
    widths = [first(f"encoder.down.{n}.block.0.conv1.weight") for n in range(depth)]
    for width in (channels, *widths):
        if width % channels or norm_groups(width) != GROUPS:
            raise ValueError(
                f"{path}: expected widths that are multiples of the first, and of {GROUPS} groups "
                f"of at least 4, found {width} after {channels}; this variant cannot be converted"
            )
    num_codes, code_dim = (*size_of(tensors, "quantize.embedding.weight", path, KIND), 0)[:2]
    return UnitRangeConfig(
        resolution=resolution,
        quantizer=nearest(num_codes, code_dim),
        channels=channels,
        multipliers=tuple(width // channels for width in widths),
        blocks_per_level=count("encoder.down.0.block.{}.conv1.weight"),
        middle_blocks=count("encoder.mid.{}.conv1.weight"),
    )


def names(config: UnitRangeConfig) -> dict[str, Names]:
    """The foreign tensors of each of ours, by our names; ValueError for an impossible shape."""
    config.check()
    table = {"quantizer.codebook": "quantize.embedding.weight"}

    def both(ours: str, theirs: str) -> None:
        table.update({f"{ours}.{part}": f"{theirs}.{part}" for part in ("weight", "bias")})

    def block(ours: str, theirs: str, changes: bool) -> None:
        for number in (1, 2):
            both(f"{ours}.norm{number}", f"{theirs}.norm{number}")
            table[f"{ours}.conv{number}.weight"] = f"{theirs}.conv{number}.weight"
        if changes:
            table[f"{ours}.shortcut.weight"] = f"{theirs}.nin_shortcut.weight"

    depth = len(config.multipliers)
    for stack, levels in (("encoder", "down"), ("decoder", "up")):
        decodes = stack == "decoder"
        width = config.multipliers[-1] if decodes else 1
        for place in range(depth):  # in the order of execution
            level = depth - 1 - place if decodes else place
            own, theirs = f"{stack}.levels.{place}", f"{stack}.{levels}.{level}"
            for j in range(config.blocks_per_level):
                changes, width = width != config.multipliers[level], config.multipliers[level]
                block(f"{own}.blocks.{j}", f"{theirs}.block.{j}", changes)
            if decodes and level:
                both(f"{own}.upsample", f"{theirs}.upsample_conv")
        for j in range(config.middle_blocks):
            block(f"{stack}.middle.{j}", f"{stack}.mid.{j}", False)
        for part in ("norm_out", "conv_out"):
            both(f"{stack}.{part}", f"{stack}.{part}")
    table["encoder.conv_in.weight"] = "encoder.conv_in.weight"
    both("decoder.conv_in", "decoder.conv_in")
    return {ours: Names((theirs,)) for ours, theirs in table.items()}
