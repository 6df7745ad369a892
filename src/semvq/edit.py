"""Repainting a part of an image: inpainting, outpainting, another class (MaskGIT, Sec. 4.3).

Codes outside the mask stay exactly; a NAR transformer draws the others. Then kept pixels come back
from the original, with a soft edge, since decoding changes them too. Masks are bool (H, W), true
where to repaint.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from semvq.data.pixels import BadImageError, crop_resize, decode, to_float, to_tensor
from semvq.generators.base import Generator
from semvq.tokenizer.model import Tokenizer

SIDES = ("left", "right", "top", "bottom")


@dataclass(frozen=True)
class Edited:
    """Results (num, ...): codes int64, what they decode to, and that blended into the original."""

    codes: Tensor
    decoded: Tensor
    blended: Tensor


@torch.no_grad()
def edit(
    generator: Generator,
    tokenizer: Tokenizer,
    image: Tensor,
    mask: Tensor,
    num: int = 1,
    classes: Tensor | None = None,
    seed: int = 0,
    **options: Any,
) -> Edited:
    """Repaint `image` (3, H, W) in [-1, 1] inside `mask` (H, W), `num` times.

    Result i is sample i of `seed`; classes (num,) and options are those of `Generator.sample`.
    Raises ValueError for an empty mask.
    """
    if not bool(mask.any()):
        raise ValueError("expected a mask with white where to repaint, found none in the crop")
    original = image.unsqueeze(0)
    codes = tokenizer.encode(original)
    redrawn = masked_cells(mask, tuple(codes.shape[1:]), tokenizer.quantizer.codes_per_place)
    known = codes.masked_fill(redrawn.to(codes.device), -1)
    drawn = generator.sample(num, classes, seed, known=known, **options)
    decoded = tokenizer.decode(drawn).clamp(-1, 1)
    weight = soft_mask(mask, tokenizer.config.factor / 2).to(decoded)
    return Edited(drawn, decoded, original + weight * (decoded - original))


def masked_cells(mask: Tensor, grid: tuple[int, ...], codes_per_place: int) -> Tensor:
    """Bool (D * h, w), as `grid`: the codes with a masked pixel in their cell, D to a place."""
    height, width = grid[0] // codes_per_place, grid[1]
    cells = mask.view(height, mask.shape[0] // height, width, mask.shape[1] // width)
    return cells.any(3).any(1).repeat(codes_per_place, 1)


def soft_mask(mask: Tensor, reach: float) -> Tensor:
    """Weights (H, W): 1 in the mask, outside half a cosine down to 0 at `reach` pixels from it."""
    steps = max(math.ceil(reach) - 1, 0)
    height, width = mask.shape
    padded = F.pad(mask.float(), (steps,) * 4)
    weight = mask.float()
    for dy in range(2 * steps + 1):
        for dx in range(2 * steps + 1):
            distance = math.hypot(dy - steps, dx - steps)
            if distance < reach:
                share = 0.5 * (1 + math.cos(math.pi * distance / reach))
                weight = torch.maximum(weight, share * padded[dy : dy + height, dx : dx + width])
    return weight


def load_edit(path: Path, mask_path: Path, resolution: int) -> tuple[Tensor, Tensor]:
    """Centre crops of an image, float (3, R, R) in [-1, 1], and its mask: bool, true where white.

    The mask is resized to the nearest pixel. BadImageError for a file that is no image, or a mask
    of another size than the image's.
    """
    pixels, drawn = (decode(_read(p), str(p)) for p in (path, mask_path))
    if pixels.shape != drawn.shape:
        expected, found = (f"{a.shape[1]}x{a.shape[0]}" for a in (pixels, drawn))
        raise BadImageError(
            f"{mask_path}: expected a mask of the image's size {expected}, found {found}"
        )
    image = to_float(to_tensor(crop_resize(pixels, resolution)))
    return image, torch.from_numpy(_nearest(drawn, resolution).mean(2) > 127)


def box_mask(box: str, resolution: int) -> Tensor:
    """The mask of "x0,y0,x1,y1", shares of the square from its top left; ValueError for others."""
    advice = f"--box: expected x0,y0,x1,y1 with 0 <= x0 < x1 <= 1 and so for y, found '{box}'"
    try:
        x0, y0, x1, y1 = (float(part) for part in box.split(","))
    except ValueError:
        raise ValueError(advice) from None
    if not (0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1):
        raise ValueError(advice)
    return _box(x0, y0, x1, y1, resolution)


def _box(x0: float, y0: float, x1: float, y1: float, resolution: int) -> Tensor:
    """True where the middle of a pixel lies in the box, given in shares of the square."""
    middles = (torch.arange(resolution, dtype=torch.float64) + 0.5) / resolution
    rows, columns = (middles > y0) & (middles < y1), (middles > x0) & (middles < x1)
    return rows[:, None] & columns


def outpaint_mask(band: str, resolution: int) -> Tensor:
    """The mask of "SIDE:SHARE": the band of that share along one side; ValueError for others."""
    side, _, text = band.partition(":")
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if side not in SIDES or not 0 < share < 1:
        raise ValueError(
            f"--outpaint: expected one of {', '.join(SIDES)} and a share between 0 and 1, "
            f"e.g. right:0.5, found '{band}'"
        )
    boxes = {
        "left": (0, 0, share, 1), "right": (1 - share, 0, 1, 1),
        "top": (0, 0, 1, share), "bottom": (0, 1 - share, 1, 1),
    }  # fmt: skip
    return _box(*boxes[side], resolution)


def _nearest(pixels: np.ndarray, resolution: int) -> np.ndarray:
    """The centre crop that `crop_resize` takes, without new grey levels at edges."""
    height, width = pixels.shape[:2]
    size = min(height, width)
    square = crop_resize(pixels, size)  # a cut, no resizing
    return np.asarray(
        Image.fromarray(square).resize((resolution, resolution), Image.Resampling.NEAREST)
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadImageError(f"{path}: {error.strerror or error}") from error
