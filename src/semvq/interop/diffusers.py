"""diffusers' `VQModel`: `config.json` beside safetensors (or an older torch file).

Images in [-1, 1]. The configuration names every block; what ours cannot be is refused by its name.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from semvq.files import read_json, sha256_of
from semvq.interop.converted import Converted
from semvq.interop.networks import MINUS_ONE_TO_ONE, ForeignVQGANConfig
from semvq.interop.opening import open_weights
from semvq.interop.vqgan_keys import Layout, fill_vqgan, nearest

LAYOUT = Layout(
    kind="diffusers' VQModel",
    encoder_block="encoder.down_blocks.{level}.resnets.{block}",
    encoder_attention="encoder.down_blocks.{level}.attentions.{block}",
    encoder_resample="encoder.down_blocks.{level}.downsamplers.0.conv",
    decoder_block="decoder.up_blocks.{level}.resnets.{block}",
    decoder_attention="decoder.up_blocks.{level}.attentions.{block}",
    decoder_resample="decoder.up_blocks.{level}.upsamplers.0.conv",
    middle=("mid_block.resnets.0", "mid_block.attentions.0", "mid_block.resnets.1"),
    finest_first=False,
    shortcut="conv_shortcut",
    attention_norm="group_norm",
    qkv=("to_q", "to_k", "to_v"),
    proj="to_out.0",
    norm_out="conv_norm_out",
    linear=True,
)
# what every key is where a configuration leaves it out
DEFAULTS: dict[str, Any] = {
    "in_channels": 3, "out_channels": 3, "down_block_types": ["DownEncoderBlock2D"],
    "up_block_types": ["UpDecoderBlock2D"], "block_out_channels": [64], "layers_per_block": 1,
    "act_fn": "silu", "latent_channels": 3, "sample_size": 32, "num_vq_embeddings": 256,
    "norm_num_groups": 32, "vq_embed_dim": None, "scaling_factor": 0.18215,
    "norm_type": "group", "mid_block_add_attention": True, "lookup_from_codebook": False,
    "force_upcast": False,
}  # fmt: skip
# the only values that ours are; the rest of the keys are sizes, or play no part in codes and pixels
FIXED = {"in_channels": 3, "out_channels": 3, "act_fn": "silu", "norm_type": "group"}
DOWN = {"DownEncoderBlock2D": False, "AttnDownEncoderBlock2D": True}  # whether it attends
UP = {"UpDecoderBlock2D": False, "AttnUpDecoderBlock2D": True}
# attention's layers as they were called before 2023
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
WEIGHT_FILES = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")


def convert(path: Path, resolution: int, config: Path | None) -> Converted:
    """The tokenizer in `path`, a file or a folder; `config` None means `config.json` beside it.

    ValueError where the files are not a VQModel's, by name of the key or the tensor.
    """
    name = None
    if path.is_dir():
        here = [path / name for name in WEIGHT_FILES if (path / name).is_file()]
        if not here:
            raise FileNotFoundError(f"{path}: expected {' or '.join(WEIGHT_FILES)}, found neither")
        name = f"{path.resolve().name}/{here[0].name}"
        path = here[0]
    opened = open_weights(path)  # first: a damaged file is named before another is missed
    settings_file = config or path.parent / "config.json"
    if not settings_file.is_file():
        raise FileNotFoundError(
            f"{settings_file}: expected the model's config.json, found none; name it with --config"
        )
    shape = read_settings(settings_file, resolution)
    tensors = _renamed(opened.tensors)
    tokenizer = fill_vqgan(LAYOUT, shape, tensors, path)
    digest = sha256_of(settings_file)
    return Converted(tokenizer, MINUS_ONE_TO_ONE, opened.sha256, opened.left_out, digest, name)


def read_settings(path: Path, resolution: int) -> ForeignVQGANConfig:
    """The networks' sizes in a `config.json`; ValueError for a key or value that ours have not."""
    found = read_json(path)
    if not isinstance(found, dict) or found.get("_class_name", "VQModel") != "VQModel":
        kind = found.get("_class_name") if isinstance(found, dict) else type(found).__name__
        raise ValueError(f"{path}: expected the configuration of a VQModel, found {kind}")
    given = {key: value for key, value in found.items() if not key.startswith("_")}
    if unknown := sorted(given.keys() - DEFAULTS.keys()):
        raise ValueError(
            f"{path}: expected keys of a VQModel, found '{unknown[0]}'; this variant cannot be "
            "converted"
        )
    settings = DEFAULTS | given
    for key, value in FIXED.items():
        if settings[key] != value:
            raise ValueError(
                f"{path}: expected {key} {value!r}, found {settings[key]!r}; this variant cannot "
                "be converted"
            )
    widths = _whole_numbers(path, "block_out_channels", settings["block_out_channels"])
    down = [_attends(path, "down_block_types", name, DOWN) for name in settings["down_block_types"]]
    up = [_attends(path, "up_block_types", name, UP) for name in settings["up_block_types"]]
    if not len(widths) == len(down) == len(up) or down != up[::-1]:
        raise ValueError(
            f"{path}: expected down_block_types and up_block_types that mirror each other, one for "
            f"each of {len(widths)} block_out_channels, found {settings['down_block_types']} and "
            f"{settings['up_block_types']}; this variant cannot be converted"
        )
    latent, groups, blocks, codes = _whole_numbers(
        path, "sizes",
        [settings[k] for k in ("latent_channels", "norm_num_groups", "layers_per_block",
                               "num_vq_embeddings")],
    )  # fmt: skip
    dim = settings["vq_embed_dim"]
    code_dim = latent if dim is None else _whole_numbers(path, "vq_embed_dim", [dim])[0]
    return ForeignVQGANConfig(
        resolution=resolution,
        quantizer=nearest(codes, code_dim),
        channels=widths[0],
        widths=widths,
        blocks_per_level=blocks,
        attention_levels=tuple(n for n, attends in enumerate(down) if attends),
        middle_attention=bool(settings["mid_block_add_attention"]),
        latent_channels=latent,
        norm_groups=groups,
    )


def _attends(path: Path, key: str, name: Any, known: Mapping[str, bool]) -> bool:
    if name not in known:
        raise ValueError(
            f"{path}: expected {key} of {' and '.join(known)}, found {name!r}; this variant cannot "
            "be converted"
        )
    return known[name]


def _whole_numbers(path: Path, key: str, values: Any) -> tuple[int, ...]:
    if (
        not isinstance(values, list)
        or not values
        or not all(type(v) is int and v > 0 for v in values)
    ):
        raise ValueError(f"{path}: expected {key} of whole numbers above 0, found {values!r}")
    return tuple(values)


def _renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Attention's layers under the names of today."""
    renamed = {}
    for name, tensor in tensors.items():
        *parents, layer, part = ("", "", *name.split("."))
        if "attentions" in parents and layer in OLD_NAMES:
            name = ".".join([*parents[2:], OLD_NAMES[layer], part])
        renamed[name] = tensor
    return renamed
