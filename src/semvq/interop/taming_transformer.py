"""taming's transformer on the codes of its VQGAN (Esser et al. 2021), as an `ARConfig` of ours.

Exactly ours where the condition is one class, or nothing: the class's row of the table of codes is
our class, and the row of the start token, number 0, is part of our first position. A condition of
many tokens (depth, segmentation) is not.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from semvq.generators.ar import ARConfig
from semvq.generators.base import Generator
from semvq.interop.keys import Names, fill, size_of
from semvq.interop.opening import LeftOut, open_weights
from semvq.interop.taming import tokenizer_of
from semvq.tokenizer.model import Tokenizer

KIND = "taming's transformer"
LEAD = "transformer."
MAX_LAYERS = 1000
CODES, POSITIONS = "tok_emb.weight", "pos_emb"
CLASSES = "tok_emb.weight, the classes"  # a part of the former


class ConvertedTransformer(NamedTuple):
    """A transformer, its file's sha256, and what of its pickle was left out."""

    generator: Generator
    sha256: str
    left_out: LeftOut


def convert(
    path: Path, tokenizer: Tokenizer, run: Path, num_heads: int, num_classes: int
) -> ConvertedTransformer:
    """The transformer in `path`, which speaks the codes of `tokenizer`, the run `run`.

    `num_heads` and `num_classes` (0: unconditional) are in the authors' configuration alone.
    ValueError where the file is not one, where ours is not exactly it, or for another tokenizer.
    """
    opened = open_weights(path, inside=("state_dict",))
    found = {k.removeprefix(LEAD): v for k, v in opened.tensors.items() if k.startswith(LEAD)}
    config = sizes(found, path, tokenizer, num_heads, num_classes)
    theirs = tokenizer_of(opened.tensors, path, tokenizer.config.resolution)
    if theirs.code_space_hash() != tokenizer.code_space_hash():
        raise ValueError(
            f"{run}: expected the tokenizer that {path} brings along, code space "
            f"{theirs.code_space_hash()[:16]}, found {tokenizer.code_space_hash()[:16]}; make it "
            f"with: semvq convert {path} --from taming --out RUN"
        )
    _check_causal(found, config, path)
    given = _with_tables(found, config)
    with torch.device("meta"):
        generator = config.build()
    fill(generator, names(config), given, path, KIND)
    return ConvertedTransformer(generator, opened.sha256, opened.left_out)


def sizes(
    found: Mapping[str, Tensor], path: Path, tokenizer: Tokenizer, num_heads: int, num_classes: int
) -> ARConfig:
    """Our configuration of it; ValueError where none is exactly it."""
    vocabulary, width = (*size_of(found, CODES, path, KIND), 0)[:2]
    positions = (*size_of(found, POSITIONS, path, KIND), 0)[1]
    height, columns = tokenizer.grid
    if vocabulary != tokenizer.num_codes or positions < height * columns:
        raise ValueError(
            f"{path}: expected a transformer on the {tokenizer.num_codes} codes of the tokenizer "
            f"and {height} x {columns} positions, found {vocabulary} and {positions}"
        )
    if not 0 <= num_classes <= vocabulary:
        raise ValueError(f"--classes: expected 0 to {vocabulary}, found {num_classes}")
    layers = (n for n in range(MAX_LAYERS) if f"blocks.{n}.ln1.weight" not in found)
    return ARConfig(
        num_layers=next(layers, MAX_LAYERS),
        width=width,
        num_heads=num_heads,
        num_codes=vocabulary,
        grid_height=height,
        grid_width=columns,
        num_classes=num_classes,
    )


def names(config: ARConfig) -> dict[str, Names]:
    """The foreign tensors of each of ours, by our names; the tables are `_with_tables`'s."""
    tables = {"codes": CODES, "positions": POSITIONS, "head": "head.weight"}
    if config.num_classes:
        tables["classes"] = CLASSES
    table = {f"{ours}.weight": Names((theirs,)) for ours, theirs in tables.items()}
    parts = {
        "attention_norm": ("ln1",),
        "attention.qkv": ("attn.query", "attn.key", "attn.value"),
        "attention.proj": ("attn.proj",),
        "mlp_norm": ("ln2",),
        "mlp.0": ("mlp.0",),
        "mlp.2": ("mlp.2",),
    }
    for kind in ("weight", "bias"):
        table[f"norm.{kind}"] = Names((f"ln_f.{kind}",))
        for n in range(config.num_layers):
            for part, theirs in parts.items():
                joined = tuple(f"blocks.{n}.{name}.{kind}" for name in theirs)
                table[f"blocks.{n}.{part}.{kind}"] = Names(joined)
    return table


def _with_tables(found: Mapping[str, Tensor], config: ARConfig) -> dict[str, Tensor]:
    """The tensors with our tables in place of theirs, and without masks."""
    given = {k: v for k, v in found.items() if not k.endswith(".attn.mask")}
    codes, positions = given[CODES], given[POSITIONS][0, : config.length].clone()
    if config.num_classes:
        given[CLASSES] = codes[: config.num_classes]
    else:
        positions[0] += codes[0]
    return given | {POSITIONS: positions}


def _check_causal(found: Mapping[str, Tensor], config: ARConfig, path: Path) -> None:
    """ValueError for a mask that lets a position see a later one."""
    length = config.length
    causal = torch.ones(length, length).tril()
    for name, mask in found.items():
        if name.endswith(".attn.mask"):
            seen = mask.reshape(-1, *mask.shape[-2:])[-1:] if mask.numel() else mask
            if seen.ndim != 3 or not torch.equal((seen[0, :length, :length] != 0).float(), causal):
                raise ValueError(
                    f"{path}: expected '{LEAD}{name}' to hide later positions, found another "
                    "mask; this variant cannot be converted"
                )
