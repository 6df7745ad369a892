"""A generator on disk: `model.safetensors` and `config.json` in one folder, written atomically.

No pickle is ever read; keys and shapes are checked before a byte of the weights is loaded.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from semvq.config import from_dict, to_dict
from semvq.files import (
    CONFIG,
    WEIGHTS,
    read_config,
    reading,
    replace_atomically,
    write_atomically,
)
from semvq.generators import ar, nar  # noqa: F401  (their configurations are found by name)
from semvq.generators.base import Generator, GeneratorConfig

_TYPES = ("F32", "F16", "BF16")  # all are read as float32


def save_generator(generator: Generator, folder: Path, extra: dict[str, Any]) -> None:
    """Write both files into `folder`, made if absent; each one appears whole or not at all.

    `extra` is JSON-ready and comes back as `load_generator(folder).extra`: the code-space hash, the
    names of the classes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # parameters first: to ask FSDP2 for a state dict divides them among the processes again
    tensors = {n: _copy(t) for n, t in generator.named_parameters(remove_duplicate=False)}
    tensors |= {n: _copy(t) for n, t in generator.state_dict().items() if n not in tensors}
    description = {"generator": to_dict(generator.config), "extra": extra}
    replace_atomically(
        folder / WEIGHTS, lambda path: save_file(tensors, path, metadata={"format": "pt"})
    )
    write_atomically(folder / CONFIG, json.dumps(description, indent=2) + "\n")


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()


def load_generator(folder: Path | str) -> Generator:
    """The generator saved in `folder`, on the CPU, in eval mode.

    Raises ValueError for files that are not a generator's, or keys and shapes that do not fit the
    configuration; FileNotFoundError where there is no such file.
    """
    folder = Path(folder)
    with reading(folder):
        return _load(folder)


def _load(folder: Path) -> Generator:
    description = _read_description(folder)
    config = from_dict(GeneratorConfig, description["generator"], f"{folder / CONFIG}: generator")
    # Shapes are compared on the meta device, so a damaged file cannot make us allocate.
    with torch.device("meta"):
        generator = config.build()
    expected = {n: tuple(t.shape) for n, t in generator.state_dict().items()}
    tensors = _read_tensors(folder / WEIGHTS, expected)
    generator.load_state_dict(tensors, strict=True, assign=True)
    generator.extra = description.get("extra", {})
    return generator.requires_grad_(True).eval()


def _read_description(folder: Path) -> dict[str, Any]:
    description = read_config(folder, "generator", "an AR or NAR run")
    if not isinstance(description, dict) or "generator" not in description:
        raise ValueError(
            f"{folder / CONFIG}: expected a generator's configuration, found none; "
            "is it another run?"
        )
    if not isinstance(extra := description.get("extra", {}), dict):
        raise ValueError(f"{folder / CONFIG}: expected an object as extra, found {extra!r}")
    return description


def _read_tensors(path: Path, expected: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a generator's weights, found no such file")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            names = list(file.keys())
            found = {name: tuple(file.get_slice(name).get_shape()) for name in names}
            _compare(path, expected, found)
            for name in names:
                if (kind := file.get_slice(name).get_dtype()) not in _TYPES:
                    raise ValueError(f"{path}: {name}: expected type F32, found {kind}")
            return {name: file.get_tensor(name).float() for name in expected}
    except SafetensorError as error:
        raise ValueError(f"{path}: expected a whole safetensors file ({error})") from None


def _compare(
    path: Path, expected: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]]
) -> None:
    missing, unknown = sorted(expected.keys() - found), sorted(found.keys() - expected)
    if missing:
        raise ValueError(
            f"{path}: expected a tensor '{missing[0]}', found none ({len(missing)} missing)"
        )
    if unknown:
        raise ValueError(f"{path}: found an unknown tensor '{unknown[0]}' ({len(unknown)} unknown)")
    for name, shape in expected.items():
        if found[name] != shape:
            raise ValueError(f"{path}: {name}: expected shape {shape}, found {found[name]}")
