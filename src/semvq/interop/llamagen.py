"""LlamaGen's tokenizers (Sun et al. 2024): `vq_ds16_c2i.pt` and its like.

VQGAN's networks, attention on the coarsest maps, and narrow codes that are put on the unit sphere
when they are used. Images in [-1, 1].
"""

from dataclasses import replace
from pathlib import Path

from semvq.interop.converted import Converted
from semvq.interop.networks import MINUS_ONE_TO_ONE
from semvq.interop.opening import open_weights
from semvq.interop.vqgan_keys import Layout, fill_vqgan, sizes
from semvq.rivals.factorized import FactorizedQuantizerConfig

LAYOUT = Layout(
    kind="LlamaGen's tokenizer",
    encoder_block="encoder.conv_blocks.{level}.res.{block}",
    encoder_attention="encoder.conv_blocks.{level}.attn.{block}",
    encoder_resample="encoder.conv_blocks.{level}.downsample.conv",
    decoder_block="decoder.conv_blocks.{level}.res.{block}",
    decoder_attention="decoder.conv_blocks.{level}.attn.{block}",
    decoder_resample="decoder.conv_blocks.{level}.upsample.conv",
    middle=("mid.0", "mid.1", "mid.2"),
    finest_first=False,
    code_convs=("quantizer.down", "quantizer.up"),
)
COUNTER = "quantize.codebook_used"  # what training saw last


def convert(path: Path, resolution: int) -> Converted:
    """The tokenizer in `path`; ValueError where the file is not one, by name of the tensor."""
    opened = open_weights(path, inside=("ema", "model", "state_dict"))
    tensors = {k: v for k, v in opened.tensors.items() if k != COUNTER}
    found = sizes(LAYOUT, tensors, path, resolution)
    quantizer = FactorizedQuantizerConfig(
        num_codes=found.quantizer.num_codes,
        code_dim=found.latent_channels,
        factor_dim=found.quantizer.code_dim,
    )
    config = replace(found, code_convs=False, quantizer=quantizer)
    tokenizer = fill_vqgan(LAYOUT, config, tensors, path)
    return Converted(tokenizer, MINUS_ONE_TO_ONE, opened.sha256, opened.left_out)
