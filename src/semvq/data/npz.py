"""Many images as one array file, in the layout of ADM's evaluation suite (Dhariwal & Nichol 2021).

`arr_0` uint8 (N, H, W, 3) and, where there are classes, `arr_1` int64 (N,).
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from hashlib import file_digest
from pathlib import Path

import numpy as np
from torch import Tensor

from semvq.files import replace_atomically


def save_npz(images: Tensor, classes: Tensor | None, path: Path) -> None:
    """Write uint8 images (N, 3, H, W), and their classes (N,), to `path`: whole or not at all."""
    arrays = [images.permute(0, 2, 3, 1).cpu().numpy()]
    if classes is not None:
        arrays.append(classes.cpu().numpy())

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:  # a name alone would get the suffix .npz
            np.savez(file, *arrays)

    path.parent.mkdir(parents=True, exist_ok=True)
    replace_atomically(path, write)


def open_npz(
    path: Path, pixel_range: tuple[float, float] | None = None
) -> tuple[np.ndarray, np.ndarray | None, str]:
    """Images uint8 (N, H, W, 3), classes int64 (N,) (None where none) and the file's sha256.

    Greyscale (N, H, W) or (N, H, W, 1) becomes RGB. Float images are scaled from `pixel_range`,
    which has to be declared for them, and rounded. ValueError for anything else, or for NaN.
    """
    arrays = read_npz(path, ("arr_0", "arr_1"))
    if "arr_0" not in arrays:
        held = ", ".join(npz_names(path)) or "nothing"
        raise ValueError(f"{path}: expected images in 'arr_0', found {held}")
    pixels = arrays["arr_0"]
    if pixels.ndim == 3:
        pixels = pixels[..., None]
    if pixels.ndim != 4 or pixels.shape[3] not in (1, 3) or pixels.shape[1] != pixels.shape[2]:
        raise ValueError(
            f"{path}: expected square images (N, H, H, 3) in 'arr_0', found {arrays['arr_0'].shape}"
        )
    if not len(pixels):
        raise ValueError(f"{path}: expected images in 'arr_0', found none")
    pixels = np.broadcast_to(_as_uint8(pixels, pixel_range, path), (*pixels.shape[:3], 3))
    classes = _classes(arrays["arr_1"], len(pixels), path) if "arr_1" in arrays else None
    with path.open("rb") as file:
        return pixels, classes, file_digest(file, "sha256").hexdigest()


def npz_names(path: Path) -> list[str]:
    """Sorted names of the arrays of a file, none of which is read. ValueError as `read_npz`."""
    with _opened(path) as found:
        return sorted(found.files)


def read_npz(path: Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Those arrays among `names` that a file has.

    ValueError where it is no whole `.npz`, or where one of them holds objects.
    """
    with _opened(path) as found:
        return {name: found[name] for name in names if name in found.files}


@contextmanager
def _opened(path: Path) -> Iterator[np.lib.npyio.NpzFile]:
    try:
        found = np.load(path, allow_pickle=False)
        if isinstance(found, np.ndarray):
            raise ValueError("a single array")
        with found:
            yield found
    except Exception as error:  # a stranger's file: zip, zlib and headers have errors of their own
        words = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ValueError(f"{path}: expected a whole .npz file of arrays, found: {words}") from error


def _classes(found: np.ndarray, num: int, path: Path) -> np.ndarray:
    if found.shape != (num,) or found.dtype.kind not in "iu" or found.min() < 0:
        least = f", the least {found.min()}" if found.dtype.kind in "iu" and found.size else ""
        raise ValueError(
            f"{path}: expected classes ({num},) of 0 or more in 'arr_1', found {found.dtype} "
            f"{found.shape}{least}"
        )
    return found.astype(np.int64)


def _as_uint8(
    pixels: np.ndarray, pixel_range: tuple[float, float] | None, path: Path
) -> np.ndarray:
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype.kind != "f":
        raise ValueError(f"{path}: expected uint8 images, found {pixels.dtype}")
    if pixel_range is None:
        raise ValueError(
            f"{path}: expected uint8 images, found {pixels.dtype}, which can mean any range; save "
            "them as uint8, or declare it, e.g. --pixel-range -1 1"
        )
    low, high = pixel_range
    if not (low < high and math.isfinite(high - low)):
        raise ValueError(f"--pixel-range: expected LOW below HIGH, found {low:g} {high:g}")
    least, most = float(pixels.min()), float(pixels.max())  # NaN, if there is one
    if not math.isfinite(least + most):
        raise ValueError(f"{path}: expected finite pixels, found NaN or infinity")
    if least < low or most > high:
        raise ValueError(
            f"{path}: expected pixels in [{low:g}, {high:g}], found {least:g} to {most:g}"
        )
    found = np.empty(pixels.shape, np.uint8)
    for image, whole in zip(pixels, found):  # one by one: 50,000 in float64 take 79 GB
        whole[:] = ((image.astype(np.float64) - low) / (high - low) * 255).round()
    return found
