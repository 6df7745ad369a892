"""The photos of a comparison: which could be read, which are shown, how far two lie apart.

A file that cannot be read takes no row among codes and figures, so rows are no image numbers.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from semvq.data.order import spread
from semvq.evaluation.features import strict_fp32
from semvq.evaluation.reconstruction import ImageDistances
from semvq.evaluation.sources import UNIT, FileImages, Images


class NotedImages:
    """Image files, of which it notes which could be read, whoever goes over them."""

    def __init__(self, source: FileImages) -> None:
        self.source = source
        self.num, self.side, self.facts = source.num, source.side, source.facts
        self._read: dict[int, Tensor] = {}

    def units(self, numbers: Iterable[range]) -> Iterator[Images]:
        """See `Source`."""
        for unit in self.source.units(numbers):
            self._read[unit.first] = unit.numbers
            yield unit

    @property
    def numbers(self) -> Tensor:
        """Numbers int64 (N,) of the images that were read, in order: row i is image numbers[i]."""
        return torch.cat([self._read[first] for first in sorted(self._read)])


def images_at(source: FileImages, numbers: Tensor) -> Tensor:
    """The images of those numbers, uint8 (n, 3, H, W)."""
    units = source.units([range(number, number + 1) for number in numbers.tolist()])
    return torch.cat([unit.pixels for unit in units])


def between_photos(source: FileImages, numbers: Tensor, device: torch.device) -> dict[str, float]:
    """Mean distances between two different photos: about where nothing is left in common.

    `numbers` (N,) are the photos to take them from; empty for fewer than two. Both of a pair lie
    half of the set apart: files stand in the order of their classes, and neighbours look alike.
    """
    chosen = numbers[spread(len(numbers), UNIT)]
    if len(chosen) < 2:
        return {}
    half = len(chosen) // 2
    pixels = images_at(source, chosen[: 2 * half])
    with strict_fp32():
        found = ImageDistances(device)(pixels[half:], pixels[:half])
    return {name: float(found[name].mean()) for name in ("lpips", "low", "semantic")}
