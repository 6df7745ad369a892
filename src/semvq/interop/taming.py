"""taming-transformers' VQGAN (Esser et al. 2021): Lightning's `last.ckpt`, or its state dict.

Images in [-1, 1]. The file also holds the losses' networks, which are left out. Sizes are told by
the tensors; the configuration beside the file says nothing more but the resolution.
"""

from pathlib import Path

from semvq.interop.converted import Converted
from semvq.interop.keys import fill
from semvq.interop.networks import MINUS_ONE_TO_ONE
from semvq.interop.opening import open_weights
from semvq.interop.vqgan_keys import Layout, names, simplest, sizes

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


def convert(path: Path, resolution: int) -> Converted:
    """The tokenizer in `path`; ValueError where the file is not one, by name of the tensor."""
    opened = open_weights(path, inside=("state_dict",))
    tensors = {k: v for k, v in opened.tensors.items() if not k.startswith(LOSSES)}
    config = sizes(LAYOUT, tensors, path, resolution)
    table = names(LAYOUT, config)
    tokenizer = fill(simplest(config), table, tensors, path, LAYOUT.kind)
    return Converted(tokenizer, MINUS_ONE_TO_ONE, opened.sha256, opened.left_out)
