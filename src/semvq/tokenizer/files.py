"""Saving and loading a tokenizer: `model.safetensors` and `config.json` in one folder.

Only safetensors and JSON are ever read, so a file from a stranger can be wrong but not run code.
Names and shapes are checked against the file's header before any memory is taken.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import semvq.tokenizer.conv  # noqa: F401, its configuration is found by name
from semvq.config import from_dict, to_dict
from semvq.files import (
    CONFIG,
    WEIGHTS,
    read_config,
    reading,
    replace_atomically,
    sha256_of,
    write_atomically,
)
from semvq.tokenizer.model import Tokenizer, TokenizerConfig

_FORMAT = "semvq tokenizer 2"
_KEYS = ("format", "config", "code_space_hash", "weights_sha256", "extra")


def save_tokenizer(
    tokenizer: Tokenizer, folder: Path | str, extra: dict[str, Any] | None = None
) -> None:
    """Write the tokenizer and the JSON-ready facts `extra` (recipe, class names, …) to `folder`.

    Each file is written beside its place and renamed, so that a reader never meets a half.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {k: v.detach().cpu().contiguous() for k, v in tokenizer.state_dict().items()}
    replace_atomically(folder / WEIGHTS, lambda path: save_file(tensors, path))
    record = {
        "format": _FORMAT,
        "config": to_dict(tokenizer.config),
        "code_space_hash": tokenizer.code_space_hash(),
        "weights_sha256": sha256_of(folder / WEIGHTS),
        "extra": extra or {},
    }
    write_atomically(folder / CONFIG, json.dumps(record, indent=2) + "\n")


def load_tokenizer(folder: Path | str) -> Tokenizer:
    """Read back what `save_tokenizer` wrote, on the CPU and in evaluation mode.

    `folder` may also be the path of its `model.safetensors`. Raises FileNotFoundError where a
    file is missing and ValueError for a broken file, unknown keys, or tensors that do not fit.
    """
    folder = _folder(folder)
    with reading(folder):
        return _load(folder)


def _load(folder: Path) -> Tokenizer:
    record = _read_record(folder)
    config = from_dict(TokenizerConfig, record["config"], f"{folder / CONFIG}: config")
    weights = folder / WEIGHTS
    if not weights.is_file():
        raise FileNotFoundError(f"expected {weights}, found no such file")
    _check_depth(weights, config)
    with torch.device("meta"):
        expected = config.build().state_dict()
    check_tensors(weights, expected)
    if sha256_of(weights) != record["weights_sha256"]:
        raise ValueError(
            f"{weights}: expected sha256 {record['weights_sha256'][:16]} as in {CONFIG}, found "
            f"{sha256_of(weights)[:16]}; the file is damaged or belongs to another tokenizer"
        )
    with torch.random.fork_rng(devices=[]):
        tokenizer = config.build()
    tokenizer.load_state_dict(load_file(weights))
    if (found := tokenizer.code_space_hash()) != record["code_space_hash"]:
        raise ValueError(
            f"{folder}: expected code space {record['code_space_hash'][:16]} as in {CONFIG}, "
            f"found {found[:16]}; {CONFIG} was changed after it was written"
        )
    return tokenizer.eval()


def tokenizer_extra(folder: Path | str) -> dict[str, Any]:
    """The `extra` facts that were saved with a tokenizer."""
    folder = _folder(folder)
    with reading(folder):
        return _read_record(folder)["extra"]


def check_tensors(path: Path, expected: dict[str, Tensor]) -> None:
    """Raise ValueError unless a safetensors file holds exactly these names, shapes and types."""
    found = _header(path)
    names = found.keys()
    wanted = {name: tuple(tensor.shape) for name, tensor in expected.items()}
    missing, unknown = sorted(wanted.keys() - names), sorted(names - wanted.keys())
    if missing or unknown:
        raise ValueError(
            f"{path}: expected the tensors of its configuration, found "
            f"{len(missing)} missing ({', '.join(missing[:3])}) and "
            f"{len(unknown)} unknown ({', '.join(unknown[:3])})"
        )
    for name, shape in wanted.items():
        found_shape, found_type = found[name]
        if found_shape != shape:
            raise ValueError(f"{path}: expected {name} of shape {shape}, found {found_shape}")
        if expected[name].is_floating_point() and found_type != "F32":
            raise ValueError(f"{path}: expected {name} of type F32, found {found_type}")


def _check_depth(path: Path, config: TokenizerConfig) -> None:
    """Refuse a depth for which the file has too few tensors: modules take time on any device."""
    blocks = config.num_blocks
    if (found := len(_header(path))) < blocks:
        raise ValueError(
            f"{path}: expected the tensors of the {blocks} blocks in {CONFIG}, found {found} "
            "tensors; the files belong to different tokenizers"
        )


def _header(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and type of every tensor of a safetensors file, by name; no tensor is read."""
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {n: (tuple(s.get_shape()), s.get_dtype()) for n, s in slices.items()}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: expected a safetensors file, found {error}") from error


def _folder(path: Path | str) -> Path:
    path = Path(path)
    return path.parent if path.name == WEIGHTS else path


def _read_record(folder: Path) -> dict[str, Any]:
    record, path = read_config(folder, "tokenizer", "a tokenizer run"), folder / CONFIG
    if not isinstance(record, dict) or record.get("format") != _FORMAT:
        found = record.get("format") if isinstance(record, dict) else type(record).__name__
        raise ValueError(f"{path}: expected format '{_FORMAT}', found {found!r}")
    if sorted(record) != sorted(_KEYS):
        raise ValueError(f"{path}: expected keys {sorted(_KEYS)}, found {sorted(record)}")
    if not isinstance(record["extra"], dict):
        raise ValueError(f"{path}: expected an object as extra, found {record['extra']!r}")
    return record
