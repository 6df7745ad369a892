"""The packaged photos: complete, readable, classes on both sides, nothing twice."""

import hashlib
import tarfile
from pathlib import Path

import numpy as np

from semvq.data.images import ImageSet
from semvq.photos import fruit

NUM_PHOTOS = 1393
CLASSES = (
    "Anjou", "Cantaloupe", "Conference", "Galia-Melon", "Golden-Delicious", "Granny-Smith",
    "Honeydew-Melon", "Kaiser", "Orange", "Pink-Lady", "Red-Delicious", "Royal-Gala", "Satsumas",
    "Watermelon",
)  # fmt: skip


def test_all_photos_are_there_in_every_class():
    train, val = map(ImageSet.open, fruit())
    assert train.classes == val.classes == CLASSES
    assert len(train) + len(val) == NUM_PHOTOS
    for label in range(len(CLASSES)):
        ours, held_out = (train.labels == label).sum(), (val.labels == label).sum()
        assert 0.1 < held_out / (ours + held_out) < 0.2


def test_no_photo_twice_and_none_on_both_sides():
    digests = []
    for path in fruit():
        with tarfile.open(path) as archive:
            digests += [hashlib.sha256(archive.extractfile(m).read()).digest() for m in archive]
    assert len(digests) == len(set(digests)) == NUM_PHOTOS


def test_photos_are_small_and_in_colour():
    for path in fruit():
        photos = ImageSet.open(path).spread(60)
        images = [photos.load(i) for i in range(len(photos))]
        assert {min(image.shape[:2]) for image in images} == {72}
        assert all(image.astype(int).std(axis=(0, 1)).min() > 5 for image in images)
        assert np.mean([np.ptp(image.mean((0, 1))) for image in images]) > 30
    assert sum(path.stat().st_size for path in fruit()) < 12e6


def test_no_held_out_photo_resembles_a_training_photo_closely():
    """A cheap stand-in for the script's feature matching: thumbnails of both sides."""
    sides = []
    for path in fruit():
        photos = ImageSet.open(path)
        squares = np.stack([photos.load(i)[:72, :72] for i in range(len(photos))])
        tiny = squares.reshape(-1, 6, 12, 6, 12, 3).mean((2, 4))
        flat = tiny.reshape(len(tiny), -1)
        flat = flat - flat.mean(1, keepdims=True)
        sides.append(flat / np.linalg.norm(flat, axis=1, keepdims=True))
    assert (sides[0] @ sides[1].T).max() < 0.985


def test_terms_travel_with_the_photos():
    folder = Path(fruit()[0]).parent
    assert "Copyright (c) 2019 Marcus Klasson" in (folder / "LICENSE").read_text()
    assert "Klasson" in (folder / "ATTRIBUTION.md").read_text()
