"""Images one by one: reading, encoding, and FID with an outer product per image."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from semvq.data.images import DataConfig
from semvq.data.order import CROP, EpochOrder, uniforms


def image_files(folder: Path) -> list[Path]:
    """Files of class folders, in the order of their names."""
    return sorted(p for p in folder.rglob("*") if p.is_file())


def crop(image: Image.Image, resolution: int, side: float, x: float, y: float) -> np.ndarray:
    """A square of `side` of the short side, at `x` and `y` of what is left over, resized."""
    width, height = image.size
    size = max(1, round(side * min(width, height)))
    left = min(int(x * (width - size + 1)), width - size)
    top = min(int(y * (height - size + 1)), height - size)
    box = (left, top, left + size, top + size)
    return np.asarray(image.resize((resolution, resolution), Image.Resampling.BICUBIC, box=box))


def training_images(folder: Path, config: DataConfig, seed: int) -> Tensor:
    """The first epoch of a training stream, uint8 (N, 3, H, W): a loop over files."""
    files = image_files(folder)
    order = EpochOrder(len(files), seed)
    found = []
    for position in range(len(files)):
        epoch, index = order.locate(position)
        draws = uniforms(seed, CROP, epoch, index, 4)
        side = config.min_crop + (1 - config.min_crop) * draws[0]
        image = Image.open(files[index]).convert("RGB")
        pixels = crop(image, config.resolution, side, draws[1], draws[2])
        pixels = pixels[:, ::-1] if config.flip and draws[3] < 0.5 else pixels
        found.append(torch.from_numpy(pixels.transpose(2, 0, 1).copy()))
    return torch.stack(found)


def cached_tokens(
    folder: Path, resolution: int, encode: Callable[[Tensor], Tensor], file: Path
) -> Tensor:
    """Codes (N, 2, h, w) of the centre crop and its mirror image: two images at a time."""
    found = []
    for path in image_files(folder):
        pixels = crop(Image.open(path).convert("RGB"), resolution, 1.0, 0.5, 0.5)
        image = torch.from_numpy(pixels.transpose(2, 0, 1).copy())
        pair = torch.stack([image, image.flip(-1)]).float() / 127.5 - 1
        found.append(encode(pair).cpu())
    np.save(file, torch.stack(found).numpy())
    return torch.stack(found)


def frechet(
    pixels: Tensor, features: Callable[[Tensor], Tensor], mean: Tensor, covariance: Tensor
) -> Tensor:
    """FID of uint8 images against a Gaussian: one image at a time, one outer product each."""
    width = len(mean)
    total = torch.zeros(width, dtype=torch.float64)
    outer = torch.zeros(width, width, dtype=torch.float64)
    for image in pixels.split(1):
        row = features(image)[0].double().cpu()
        total += row
        outer += row.outer(row)
    own = total / len(pixels)
    spread = (outer - len(pixels) * own.outer(own)) / (len(pixels) - 1)
    # the root of the product by its eigenvalues, which rounding may make negative or complex
    shared = torch.linalg.eigvals(covariance @ spread).real.clamp_min(0).sqrt().sum()
    between = (mean - own).square().sum()
    return between + covariance.trace() + spread.trace() - 2 * shared
