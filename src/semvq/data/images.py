"""Images for training and evaluation, as uint8 batches; the parts are in the files beside this.

A training stream is a pure function of (seed, position): see `order`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from semvq.config import Config
from semvq.data.folders import ImageSet, split
from semvq.data.order import CROP, EpochOrder, batches, stream, uniforms
from semvq.data.pixels import (
    BadImageError,
    crop_resize,
    decode,
    image_grid,
    png_bytes,
    save_png,
    to_float,
    to_tensor,
    to_uint8,
)

__all__ = [
    "BadImageError",
    "DataConfig",
    "ImageSet",
    "TrainImages",
    "Views",
    "eval_batches",
    "image_grid",
    "load_image",
    "open_train_val",
    "png_bytes",
    "save_png",
    "split",
    "stream",
    "to_float",
    "to_uint8",
]

_MAX_TRIES = 100  # files in a row that may be bad before it is the disk and not the files


@dataclass(frozen=True)
class DataConfig(Config):
    """How images become squares of `resolution` pixels.

    The side of the crop is uniform in [`min_crop`, 1] of the short side; it lies in the centre
    unless `random_position`. `bad_images`: whether a file that cannot be read is replaced by the
    next one and named, or ends the run. `val_share` is held out where no held-out set is given.
    """

    resolution: int
    min_crop: float = 1.0
    random_position: bool = False
    flip: bool = False
    bad_images: Literal["skip", "raise"] = "skip"
    val_share: float = 0.1

    def __post_init__(self) -> None:
        if self.resolution < 1:
            raise ValueError(f"expected a resolution of at least 1, found {self.resolution}")
        if not 0 < self.min_crop <= 1:
            raise ValueError(f"expected min_crop above 0 and at most 1, found {self.min_crop}")
        if not 0 < self.val_share < 1:
            raise ValueError(f"expected val_share between 0 and 1, found {self.val_share}")

    @property
    def crops(self) -> bool:
        """Whether crops differ from the centre crop."""
        return self.random_position or self.min_crop < 1


def open_train_val(
    data: str | Path, val: str | Path | None, config: DataConfig
) -> tuple[ImageSet, ImageSet]:
    """Training and held-out images; without `val`, a share of `data` is split off by hash."""
    train = ImageSet.open(data)
    if val is None:
        return split(train, config.val_share)
    return train, ImageSet.open(val, train.classes)


class TrainImages(Dataset):
    """An endless stream of augmented images, by position.

    Item: `image` uint8 (3, resolution, resolution), `label` and `index` int, `bad` the files that
    were skipped for it. The length is that of an epoch; positions go on beyond it.
    """

    def __init__(self, image_set: ImageSet, config: DataConfig, seed: int) -> None:
        self.image_set, self.config, self.seed = image_set, config, seed
        self._order = EpochOrder(len(image_set), seed)

    def __len__(self) -> int:
        return len(self.image_set)

    def __getitem__(self, position: int) -> dict[str, Any]:
        epoch, wanted = self._order.locate(position)
        index, image, bad = self._first_good(wanted)
        draws = uniforms(self.seed, CROP, epoch, wanted, 4)
        return {
            "image": _augment(image, self.config, draws),
            "label": int(self.image_set.labels[index]),
            "index": index,
            "bad": bad,
        }

    def _first_good(self, wanted: int) -> tuple[int, np.ndarray, tuple[str, ...]]:
        """The image of that number or, if it is bad, the next good one; and what was bad."""
        bad: list[str] = []
        num = len(self.image_set)
        for step in range(min(num, _MAX_TRIES)):
            index = (wanted + step) % num
            try:
                return index, self.image_set.load(index), tuple(bad)
            except BadImageError as error:
                if self.config.bad_images == "raise":
                    raise
                bad.append(str(error))
        raise ValueError(f"{len(bad)} images in a row cannot be read, the first {bad[0]}")


class Views(Dataset):
    """Fixed views of every image, by image number: for evaluation and token caches.

    View 0 is the centre crop; then come its mirror image if `config.flip`, and random crops. Item:
    `image` uint8 (num_views, 3, resolution, resolution), `label`, `index`; `bad` alone where the
    file cannot be read. ValueError if `config` has fewer different views.
    """

    def __init__(self, image_set: ImageSet, config: DataConfig, num_views: int = 1) -> None:
        if num_views < 1:
            raise ValueError(f"expected at least 1 view of an image, found {num_views}")
        different = 1 + config.flip
        if num_views > different and not config.crops:
            raise ValueError(
                f"expected at most {different} views without random crops, found {num_views}; "
                "set min_crop below 1 or random_position"
            )
        self.image_set, self.config, self.num_views = image_set, config, num_views

    def __len__(self) -> int:
        return len(self.image_set)

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            image = self.image_set.load(index)
        except BadImageError as error:
            if self.config.bad_images == "raise":
                raise
            return {"bad": (str(error),)}
        views = [self._view(image, index, v) for v in range(self.num_views)]
        return {
            "image": torch.stack(views),
            "label": int(self.image_set.labels[index]),
            "index": index,
        }

    def _view(self, image: np.ndarray, index: int, view: int) -> Tensor:
        mirrored = view == 1 and self.config.flip
        if view == 0 or mirrored:
            return to_tensor(crop_resize(image, self.config.resolution), mirrored)
        return _augment(image, self.config, uniforms(0, CROP, view, index, 4))


def pieces(part: range, size: int) -> Iterator[range]:
    """A range of image numbers in ranges of at most `size`."""
    for first in range(part.start, part.stop, size):
        yield range(first, min(first + size, part.stop))


def eval_batches(
    image_set: ImageSet,
    config: DataConfig,
    batch_size: int,
    num_workers: int = 0,
    part: range | None = None,
) -> Iterator[dict[str, Any]]:
    """Centre crops in order: `image` uint8 (B, 3, H, W), `label`, `index` int64 (B,), `bad`.

    `part` None means all images. Files that cannot be read are left out (or raise, as
    `config.bad_images` says).
    """
    views = Views(image_set, config)
    numbers = pieces(range(len(image_set)) if part is None else part, batch_size)
    for batch in batches(views, numbers, num_workers):
        if "image" in batch:
            yield batch | {"image": batch["image"][:, 0]}


def load_image(path: str | Path, config: DataConfig) -> Tensor:
    """The centre crop of one image file, uint8 (3, resolution, resolution)."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise BadImageError(f"{path}: {error.strerror or error}") from error
    return to_tensor(crop_resize(decode(data, str(path)), config.resolution))


def _augment(image: np.ndarray, config: DataConfig, draws: np.ndarray) -> Tensor:
    """Crop and mirror by four numbers in [0, 1)."""
    side = config.min_crop + (1 - config.min_crop) * draws[0]
    x, y = draws[1:3] if config.random_position else (0.5, 0.5)
    square = crop_resize(image, config.resolution, side, x, y)
    return to_tensor(square, flip=config.flip and bool(draws[3] < 0.5))
