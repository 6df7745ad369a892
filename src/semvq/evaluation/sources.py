"""Where the images of an evaluation come from: files, arrays, or a generator as it samples.

A source hands out image numbers in units of `UNIT`, each read, sampled and decoded as one whole.
What a unit holds is a function of its numbers alone, so neither the number of processes nor how
much is asked for at a time can change a pixel.
"""

from collections.abc import Iterable, Iterator
from itertools import tee
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from semvq.data.images import (
    BadImageError,
    DataConfig,
    ImageSet,
    Views,
    save_png,
    to_float,
    to_uint8,
)
from semvq.data.npz import open_npz
from semvq.data.order import batches
from semvq.data.pixels import EXTENSIONS, to_tensor
from semvq.evaluation.features import strict_fp32
from semvq.generators.base import Generator
from semvq.generators.noise import UNIGRAM_CODES, Noise
from semvq.tokenizer.model import Tokenizer

UNIT = 64
SHEET = "grid.png"  # what `semvq sample` puts beside its samples, and is none


class Images(NamedTuple):
    """One unit: uint8 (n, 3, H, W), classes int64 (n,), and the files that could not be read.

    `first` is the number its range begins with; `read` int64 (n,) are the numbers of its images,
    None where all of them are there.
    """

    first: int
    pixels: Tensor
    labels: Tensor
    bad: tuple[str, ...] = ()
    read: Tensor | None = None

    @property
    def numbers(self) -> Tensor:
        """Which image of the source each of these is: int64 (n,)."""
        consecutive = torch.arange(self.first, self.first + len(self.pixels))
        return consecutive if self.read is None else self.read


class Source(Protocol):
    """`num` images, each (3, `side`, `side`), in units; `facts` name them."""

    num: int
    side: int

    def units(self, numbers: Iterable[range]) -> Iterator[Images]:
        """One `Images` for each range of image numbers."""
        ...

    def facts(self) -> dict[str, Any]:
        """What a result says of these images."""
        ...


class FileImages:
    """Centre crops of image files at `side` pixels; `num_classes` 0 where they have no classes."""

    crop = "centre, bicubic with antialiasing"

    def __init__(self, image_set: ImageSet, side: int, num_workers: int = 0) -> None:
        self.image_set, self.side, self.num_workers = image_set, side, num_workers
        self.num, self.num_classes = len(image_set), len(image_set.classes)
        self.dataset: Dataset = Views(image_set, DataConfig(side))

    def units(self, numbers: Iterable[range]) -> Iterator[Images]:
        """See `Source`; a unit holds fewer images where files cannot be read."""
        numbers, firsts = tee(numbers)
        for batch, part in zip(batches(self.dataset, numbers, self.num_workers), firsts):
            if "image" in batch:
                pixels, labels, read = batch["image"][:, 0], batch["label"], batch["index"]
            else:
                pixels = torch.empty(0, 3, self.side, self.side, dtype=torch.uint8)
                labels = read = torch.empty(0, dtype=torch.int64)
            yield Images(part.start, pixels, labels, batch["bad"], read)

    def facts(self) -> dict[str, Any]:
        """Place, count and fingerprint."""
        return {
            "images": str(self.image_set.root),
            "count": self.num,
            "fingerprint": self.image_set.fingerprint,
            "crop": self.crop,
        }


class SampleFiles(FileImages):
    """A folder of samples, taken as they are: square, and all of one size."""

    crop = "none"

    def __init__(self, path: Path, num_workers: int = 0) -> None:
        image_set = ImageSet.open(path)
        samples = [i for i in range(len(image_set)) if image_set.name(i) != SHEET]
        image_set = image_set.subset(samples)
        height, width = _first_good(image_set).shape[:2]
        if height != width:
            raise ValueError(f"{path}: expected square samples, found {width}x{height}")
        super().__init__(image_set, height, num_workers)
        self.dataset = _Whole(image_set, height)


def _first_good(image_set: ImageSet) -> np.ndarray:
    error = ValueError(f"{image_set.root}: expected samples, found none")
    for index in range(min(len(image_set), 3)):
        try:
            return image_set.load(index)
        except BadImageError as found:
            error = found
    raise error


class _Whole(Dataset):
    """Images as they are, in the form of `Views`; ValueError for one of another size."""

    def __init__(self, image_set: ImageSet, side: int) -> None:
        self.image_set, self.side = image_set, side

    def __len__(self) -> int:
        return len(self.image_set)

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            image = self.image_set.load(index)
        except BadImageError as error:
            return {"bad": (str(error),)}
        height, width = image.shape[:2]
        if (height, width) != (self.side, self.side):
            raise ValueError(
                f"{self.image_set.where(index)}: expected samples of one size, "
                f"{self.side}x{self.side} as the first, found {width}x{height}"
            )
        label = int(self.image_set.labels[index])
        return {"image": to_tensor(image).unsqueeze(0), "label": label, "index": index}


class ArrayImages:
    """The images of an `.npz` file; floats need their `pixel_range`, see `open_npz`.

    `num_classes` is 0 where the file names no classes, else all up to the highest count.
    """

    def __init__(self, path: Path, pixel_range: tuple[float, float] | None = None) -> None:
        self.path = path
        self.pixels, labels, self.sha256 = open_npz(path, pixel_range)
        self.num, self.side = len(self.pixels), self.pixels.shape[1]
        self.num_classes = 0 if labels is None else int(labels.max()) + 1
        self.labels = torch.zeros(self.num, dtype=torch.int64)
        if labels is not None:
            self.labels = torch.from_numpy(labels)

    def units(self, numbers: Iterable[range]) -> Iterator[Images]:
        """See `Source`."""
        for part in numbers:
            rows = slice(part.start, part.stop)
            pixels = torch.from_numpy(self.pixels[rows].transpose(0, 3, 1, 2).copy())
            # a view would take all labels along when it is sent to another process
            yield Images(part.start, pixels, self.labels[rows].clone())

    def facts(self) -> dict[str, Any]:
        """Place, count and hash."""
        return {"images": str(self.path), "count": self.num, "sha256": self.sha256, "crop": "none"}


class SampledImages:
    """What a generator draws and a tokenizer decodes: sample i of `seed`, of class `labels[i]`."""

    def __init__(
        self,
        generator: Generator,
        tokenizer: Tokenizer,
        labels: Tensor,
        seed: int,
        options: dict[str, Any],
    ) -> None:
        self.generator, self.tokenizer, self.labels = generator, tokenizer, labels
        self.seed, self.options = seed, options
        self.num, self.side = len(labels), tokenizer.config.resolution

    def units(self, numbers: Iterable[range]) -> Iterator[Images]:
        """See `Source`."""
        conditional = bool(self.generator.config.num_classes)
        for part in numbers:
            labels = self.labels[part.start : part.stop].clone()
            classes = labels.to(self.generator.device) if conditional else None
            with strict_fp32():
                codes = self.generator.sample(
                    len(labels), classes, self.seed, first_index=part.start, **self.options
                )
            yield Images(part.start, decode_pixels(self.tokenizer, codes), labels)

    def facts(self) -> dict[str, Any]:
        """Count, seed and options."""
        chosen = self.options or "defaults"
        return {"count": self.num, "seed": self.seed, "sampling": chosen, "codes per unit": UNIT}


class UnigramImages:
    """The control: every code drawn alone, from how often it occurs in the training codes."""

    def __init__(
        self, tokenizer: Tokenizer, counts: Tensor, grid: tuple[int, int], labels: Tensor, seed: int
    ) -> None:
        self.tokenizer, self.grid, self.labels, self.seed = tokenizer, grid, labels, seed
        self.cumulative = (counts.double() / counts.sum()).cumsum(0)
        self.num, self.side = len(labels), tokenizer.config.resolution

    def units(self, numbers: Iterable[range]) -> Iterator[Images]:
        """See `Source`."""
        length = self.grid[0] * self.grid[1]
        for part in numbers:
            indices = torch.arange(part.start, part.stop)
            draws = Noise(self.seed, indices).uniform(UNIGRAM_CODES, torch.arange(length))
            codes = torch.searchsorted(self.cumulative, draws.double(), right=True)
            codes = codes.clamp_max(len(self.cumulative) - 1).view(len(part), *self.grid)
            device = self.tokenizer.last_layer.device
            pixels = decode_pixels(self.tokenizer, codes.to(device))
            yield Images(part.start, pixels, self.labels[part.start : part.stop].clone())

    def facts(self) -> dict[str, Any]:
        """What they are."""
        return {"count": self.num, "seed": self.seed, "codes": "independent, unigram"}


class SavedImages:
    """Another source, whose images are written to a folder as 000000.png, … on the way.

    ValueError where the folder holds other images, which would pass for samples.
    """

    def __init__(self, source: Source, folder: Path) -> None:
        self.source, self.folder = source, folder
        self.num, self.side, self.facts = source.num, source.side, source.facts
        folder.mkdir(parents=True, exist_ok=True)
        own = {f"{index:06d}.png" for index in range(source.num)}
        others = [
            p for p in folder.iterdir() if p.suffix.lower() in EXTENSIONS and p.name not in own
        ]
        if others:
            raise ValueError(
                f"{folder}: expected a folder without other images, found {min(others).name}; give "
                "another one"
            )

    def units(self, numbers: Iterable[range]) -> Iterator[Images]:
        """See `Source`."""
        for unit in self.source.units(numbers):
            for index, image in zip(unit.numbers.tolist(), unit.pixels):
                save_png(to_float(image), self.folder / f"{index:06d}.png")
            yield unit


@torch.no_grad()
def decode_pixels(tokenizer: Tokenizer, codes: Tensor) -> Tensor:
    """Codes (n, h, w) to uint8 images (n, 3, H, W) on the CPU; ValueError for NaN or infinity."""
    with strict_fp32():
        return rounded(tokenizer.decode(codes))


def rounded(images: Tensor) -> Tensor:
    """Float images, meant in [-1, 1], to uint8 on the CPU; ValueError for NaN or infinity."""
    if not bool(images.isfinite().all()):
        raise ValueError("expected finite pixels, found NaN or infinity; the decoder is broken")
    return to_uint8(images).cpu()
