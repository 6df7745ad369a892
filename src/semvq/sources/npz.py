"""An `.npz` of images: uint8 (N, H, W, 3) or grey, and their classes, if any.

Images are read one after the other from the archive; the whole array is never in memory.
"""

import math
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np

from semvq.data.npz import npz_names, read_npz
from semvq.data.pixels import MAX_ASPECT, MAX_PIXELS, MIN_SIDE
from semvq.sources.items import (
    DIGITS,
    START,
    Item,
    Place,
    class_folders,
    fingerprint,
    naming,
    numbered,
)

IMAGES, LABELS = ("arr_0", "images"), ("arr_1", "labels")
WANTED = "a whole .npz file of uint8 images"


class NpzSource:
    """Images by number: `arr_0` or `images`, with `arr_1` or `labels`, numbers or names."""

    def __init__(self, path: Path) -> None:
        names = npz_names(path)
        held = [name for name in IMAGES if name in names]
        if len(held) != 1:
            found = ", ".join(names) or "nothing"
            raise ValueError(f"{path}: expected images in 'arr_0' or 'images', found {found}")
        self.path, self.name = path, held[0]
        with naming(str(path), WANTED), zipfile.ZipFile(path) as archive:
            with archive.open(f"{self.name}.npy") as file:
                self.shape = _shape(path, file)
            crc = archive.getinfo(f"{self.name}.npy").CRC
        self.num: int | None = self.shape[0]
        self.folders = _folders(path, [name for name in LABELS if name in names], self.shape[0])
        self.fingerprint = fingerprint([self.shape, crc, *(self.folders or [])])

    def items(self, start: Place = START) -> Iterator[Item]:
        """See `Source`."""
        num, shape = self.shape[0], self.shape[1:]
        size, width = math.prod(shape), len(str(num - 1))
        with (
            naming(str(self.path), WANTED),
            zipfile.ZipFile(self.path) as archive,
            archive.open(f"{self.name}.npy") as file,
        ):
            _shape(self.path, file)
            if start[1]:
                file.seek(file.tell() + start[1] * size)
            for i in range(start[1], num):
                data = file.read(size)
                if len(data) < size:
                    raise ValueError(f"{self.path}: expected {num} images, found it cut after {i}")
                name = f"{i:0{width}d}"
                if self.folders:
                    name = f"{self.folders[i]}/{name}"
                pixels = np.frombuffer(data, np.uint8).reshape(shape)
                yield Item(name, (0, i + 1), f"{self.path}: image {i}", partial(_rgb, pixels))


def _shape(path: Path, file: IO[bytes]) -> tuple[int, ...]:
    """(N, H, W) or (N, H, W, 1 or 3), read from an array's head."""
    reader: dict[tuple[int, int], Any] = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    version = np.lib.format.read_magic(file)
    if version not in reader:
        raise ValueError(f"{path}: expected an array of format 1.0 or 2.0, found {version}")
    shape, fortran, dtype = reader[version](file)
    is_image = len(shape) == 3 or (len(shape) == 4 and shape[3] in (1, 3))
    if dtype != np.uint8 or not is_image or not shape[0] or fortran and len(shape) > 1:
        kind = f"{dtype} {shape}" + " in Fortran's order" * bool(fortran)
        raise ValueError(f"{path}: expected images uint8 (N, H, W, 3), found {kind}")
    short, long = sorted(shape[1:3])
    if short < MIN_SIDE or long > MAX_ASPECT * short or short * long > MAX_PIXELS:
        raise ValueError(
            f"{path}: expected sides of at least {MIN_SIDE}, an aspect of at most {MAX_ASPECT:g} "
            f"and {MAX_PIXELS} pixels, found {shape[2]}x{shape[1]}"
        )
    return shape


def _folders(path: Path, held: list[str], num: int) -> list[str] | None:
    """The class of every image, as a folder."""
    if not held:
        return None
    labels = read_npz(path, held)[held[0]]
    labels = labels[:, 0] if labels.shape == (num, 1) else labels
    if labels.shape != (num,) or labels.dtype.kind not in "iuU":
        raise ValueError(
            f"{path}: expected classes ({num},) as whole numbers or text in '{held[0]}', found "
            f"{labels.dtype} {labels.shape}"
        )
    values, inverse = np.unique(labels, return_inverse=True)
    with naming(str(path), "classes"):
        if labels.dtype.kind == "U":
            texts = [str(value) for value in values]
            if all(map(DIGITS.fullmatch, texts)):
                texts.sort(key=int)
            named = dict(zip(texts, class_folders(texts)))
            folders = [named[str(value)] for value in values]
        else:
            folders = [numbered(int(value)) for value in values]
    return [folders[i] for i in inverse]


def _rgb(pixels: np.ndarray) -> np.ndarray:
    pixels = pixels if pixels.ndim == 3 else pixels[..., None]
    return np.broadcast_to(pixels, (*pixels.shape[:2], 3))
