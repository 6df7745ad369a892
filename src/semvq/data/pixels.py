"""One image from bytes to pixels: decoding, cropping, resizing, and the pixel range.

Whatever comes in (CMYK, palette, alpha, 16 bits, EXIF rotation) leaves as upright 8-bit RGB; what
cannot is a `BadImageError` that names the file.
"""

import io
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from semvq.files import writing

MAX_PIXELS = 50_000_000
MIN_SIDE = 8
MAX_ASPECT = 10.0
# no format that runs an interpreter (EPS, PDF) or reads other files
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")


class BadImageError(ValueError):
    """A file that is no usable image; the message begins with its path."""


def decode(data: bytes, name: str) -> np.ndarray:
    """Pixels uint8 (H, W, 3) of an encoded image, its first frame if it moves.

    Transparent parts become white. BadImageError (beginning with `name`) for anything that cannot
    be decoded whole, has more than 50 megapixels, a side below 8 or an aspect above 10.
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns of much, and never says in which file; our own limit is below its own
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
            _check_size(*image.size)
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return np.asarray(_rgb(image))
    except UnidentifiedImageError:
        # Pillow's own message holds a memory address: no two would be equal
        kinds = ", ".join(_FORMATS)
        reason = f"expected {kinds}, found {data[:8]!r}…" if data else "the file is empty"
        raise BadImageError(f"{name}: {reason}") from None
    # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, EOFError and more
    except Exception as error:
        raise BadImageError(f"{name}: {error}") from error


def _check_size(width: int, height: int) -> None:
    """From the header, before anything is decompressed."""
    short, long = sorted((width, height))
    if width * height > MAX_PIXELS:
        raise ValueError(f"expected at most {MAX_PIXELS} pixels, found {width}x{height}")
    if short < MIN_SIDE:
        raise ValueError(f"expected sides of at least {MIN_SIDE} pixels, found {width}x{height}")
    if long > MAX_ASPECT * short:
        raise ValueError(f"expected an aspect of at most {MAX_ASPECT:g}, found {width}x{height}")


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("expected integer pixels, found floating point ones")
    if image.mode.startswith("I"):
        # 16 bits: `convert` would clip instead of scaling
        wide = np.asarray(image).astype(np.int64).clip(0, 65535)
        image = Image.fromarray(((wide + 128) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy


def crop_resize(
    image: np.ndarray, resolution: int, side: float = 1.0, x: float = 0.5, y: float = 0.5
) -> np.ndarray:
    """A square crop of uint8 (H, W, 3), resized to (resolution, resolution, 3).

    `side` is its share of the short side, `x` and `y` in [0, 1] its place in what is left over.
    Bicubic with antialiasing, on 8 bits.
    """
    height, width = image.shape[:2]
    size = max(1, round(side * min(height, width)))
    # floor(u * (n + 1)) makes every place equally likely, and the middle of 0.5 the centre
    left = min(int(x * (width - size + 1)), width - size)
    top = min(int(y * (height - size + 1)), height - size)
    if size == resolution:
        return image[top : top + size, left : left + size]
    box = (left, top, left + size, top + size)
    pil = Image.fromarray(image)
    return np.asarray(pil.resize((resolution, resolution), Image.Resampling.BICUBIC, box=box))


def to_tensor(image: np.ndarray, flip: bool = False) -> Tensor:
    """uint8 (H, W, 3) to a uint8 tensor (3, H, W), mirrored if told."""
    return torch.from_numpy((image[:, ::-1] if flip else image).transpose(2, 0, 1).copy())


def to_float(images: Tensor) -> Tensor:
    """uint8 images of any shape to float32 in [-1, 1]."""
    assert images.dtype == torch.uint8, f"expected uint8 images, found {images.dtype}"
    return images.float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """Float images in [-1, 1], clamped and rounded, to uint8; the inverse of `to_float`."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def png_bytes(image: Tensor) -> bytes:
    """An image (3, H, W) in [-1, 1] as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(to_uint8(image).permute(1, 2, 0).cpu().numpy()).save(buffer, format="png")
    return buffer.getvalue()


def save_png(image: Tensor, path: Path) -> None:
    """Write an image (3, H, W) in [-1, 1] to `path`."""
    with writing(path):
        path.write_bytes(png_bytes(image))


def image_grid(images: Tensor, columns: int, gap: int = 2) -> Tensor:
    """Images (N, 3, H, W) in [-1, 1] row by row on one white sheet (3, H', W')."""
    num, _, height, width = images.shape
    rows = -(-num // columns)
    sheet = images.new_ones(3, rows * (height + gap) - gap, columns * (width + gap) - gap)
    for i, image in enumerate(images):
        top, left = (i // columns) * (height + gap), (i % columns) * (width + gap)
        sheet[:, top : top + height, left : left + width] = image
    return sheet
