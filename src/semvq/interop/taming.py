"""taming-transformers' VQGAN (Esser et al. 2021): Lightning's `last.ckpt`, or its state dict.

Images in [-1, 1]. The file also holds the losses' networks, which are left out. Sizes are told by
the tensors; the configuration beside the file says nothing more but the resolution.
"""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from semvq.interop.converted import Converted
from semvq.interop.networks import MINUS_ONE_TO_ONE
from semvq.interop.opening import open_weights
from semvq.interop.vqgan_keys import Layout, fill_vqgan, sizes
from semvq.tokenizer.model import Tokenizer

LAYOUT = Layout(
    kind="taming's VQGAN",
    encoder_block="encoder.down.{level}.block.{block}",
    encoder_attention="encoder.down.{level}.attn.{block}",
    encoder_resample="encoder.down.{level}.downsample.conv",
    decoder_block="decoder.up.{level}.block.{block}",
    decoder_attention="decoder.up.{level}.attn.{block}",
    decoder_resample="decoder.up.{level}.upsample.conv",
    middle=("mid.block_1", "mid.attn_1", "mid.block_2"),
    finest_first=True,
)
LOSSES = "loss."  # perceptual network and discriminator
FIRST_STAGE = "first_stage_model."  # the same in the file of a transformer on its codes


def convert(path: Path, resolution: int) -> Converted:
    """The tokenizer in `path`, or the one that a transformer's file brings along.

    ValueError where there is none, by name of the tensor.
    """
    opened = open_weights(path, inside=("state_dict",))
    tokenizer = tokenizer_of(opened.tensors, path, resolution)
    return Converted(tokenizer, MINUS_ONE_TO_ONE, opened.sha256, opened.left_out)


def tokenizer_of(found: Mapping[str, Tensor], path: Path, resolution: int) -> Tokenizer:
    """The tokenizer of tensors by their names in `path`; ValueError as `convert`."""
    lead = FIRST_STAGE if any(name.startswith(FIRST_STAGE) for name in found) else ""
    own = {k.removeprefix(lead): v for k, v in found.items() if k.startswith(lead)}
    tensors = {k: v for k, v in own.items() if not k.startswith(LOSSES)}
    return fill_vqgan(LAYOUT, sizes(LAYOUT, tensors, path, resolution), tensors, path)
