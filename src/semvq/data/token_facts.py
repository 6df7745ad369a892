"""The files of a token cache, checked: a stranger's, or a full disk, ends in one clear line."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from semvq.files import writing

FACTS = "cache.json"
FILES = ("codes.npy", "labels.npy")
_MAX_BYTES = 2**28  # millions of names of bad images
_LIMIT = 2**31


def read_facts(path: Path) -> dict[str, Any]:
    """The facts of the cache at `path`. ValueError for none, no JSON, or a wrong or missing one."""
    file = path / FACTS
    try:
        if (size := file.stat().st_size) > _MAX_BYTES:
            raise ValueError(f"{size} bytes")
        facts = json.loads(file.read_bytes())
    except OSError as error:
        raise ValueError(
            f"expected a token cache at {path}, found no cache.json in it; make one with: "
            "semvq encode RUN --data PATH"
        ) from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: expected JSON, found something else ({error})") from error
    if not isinstance(facts, dict):
        raise ValueError(f"{file}: expected a JSON object, found {_short(facts)}")
    for key, (words, fits) in _EXPECTED.items():
        if key not in facts:
            raise ValueError(f"{file}: expected a key '{key}', found none")
        if not fits(facts[key]):
            raise ValueError(f"{file}: expected {words} as {key}, found {_short(facts[key])}")
    return facts


def map_array(file: Path, kinds: str) -> np.ndarray:
    """An `.npy` file, left on disk. ValueError unless its numbers are of one of numpy's `kinds`."""
    try:
        # never `np.load`, which might unpickle; nothing is read, so a huge shape takes no memory
        array = np.lib.format.open_memmap(file, mode="r")
    # a hostile header raises SyntaxError, TypeError, OverflowError, RecursionError and more
    except Exception as error:
        line = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"{file}: expected an array file, found {line}") from error
    if array.dtype.kind not in kinds:
        raise ValueError(f"{file}: expected whole numbers, found {array.dtype}")
    return array


def new_array(file: Path, kind: np.dtype, shape: tuple[int, ...]) -> np.memmap:
    """A mapped `.npy` file of zeros, with its room on the disk; OSError where there is none."""
    with writing(file):
        array = np.lib.format.open_memmap(file, "w+", kind, shape)
        # a hole in the file would only be found by a write through the map: a killed process
        if hasattr(os, "posix_fallocate"):
            with file.open("r+b") as handle:
                os.posix_fallocate(handle.fileno(), 0, file.stat().st_size)
    return array


def save_array(file: Path, array: np.ndarray) -> None:
    """`np.save`, but OSError with the file's name on a full disk."""
    with writing(file):
        np.save(file, array)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 128 and value.isprintable()


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 < value < _LIMIT


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, str) for v in value)


def _is_grid(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_count, value))


def _are_sizes(value: Any) -> bool:
    return isinstance(value, dict) and all(type(value.get(name)) is int for name in FILES)


_EXPECTED = {
    "code_space_hash": ("a hash", _is_name),
    "num_codes": ("a count", _is_count),
    "grid": ("[height, width]", _is_grid),
    "num_views": ("a count", _is_count),
    "num_images": ("a count", _is_count),
    "classes": ("a list of names", _are_texts),
    "fingerprint": ("a hash", _is_name),
    "sizes": ("the sizes of both files", _are_sizes),
    "bad": ("a list of files", _are_texts),
}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:80] + "…"
