"""The packaged photos that an export is tried on and drawn with."""

from torch import Tensor

from semvq.data.images import DataConfig, ImageSet, eval_batches, to_float
from semvq.photos import fruit

NUM_PHOTOS = 8


def packaged_photos(side: int) -> Tensor:
    """Held-out photos of the package, float (8, 3, side, side) in [-1, 1], spread over them."""
    photos = ImageSet.open(fruit()[1]).spread(NUM_PHOTOS)
    return to_float(next(eval_batches(photos, DataConfig(side), NUM_PHOTOS))["image"])
