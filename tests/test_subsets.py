"""Random parts of sets: fixed, of all parts alike, whatever they are read in."""

import numpy as np
import pytest
import torch

from semvq.data.images import ImageSet, pieces
from semvq.evaluation.sources import ArrayImages, FileImages
from semvq.evaluation.subsets import CODED_IMAGES, KEPT_ROWS, SomeImages, places, ranks
from tests.evaluation_toy import noisy, pixels_of


def test_ranks_are_a_fixed_permutation():
    found = ranks(1000, KEPT_ROWS)
    assert torch.equal(found.sort().values, torch.arange(1000))
    assert torch.equal(found, ranks(1000, KEPT_ROWS))
    assert found[:6].tolist() == [199, 109, 889, 842, 532, 708], (
        "the same on every machine and in every version"
    )
    for other in (ranks(1000, CODED_IMAGES), torch.arange(1000)):
        assert abs(float(torch.corrcoef(torch.stack([found, other]).double())[0, 1])) < 0.1


def test_places_are_all_different_where_the_random_parts_are_equal(monkeypatch):
    numbers = torch.tensor([0, 5, 2**31 - 1])
    monkeypatch.setattr("semvq.generators.noise.Noise.bits", lambda *_: torch.full((3,), 2**32 - 1))
    found = places(numbers, KEPT_ROWS)
    assert bool((found.diff() > 0).all()) and int(found[-1]) == 2**63 - 1


@pytest.mark.parametrize("kind", ["files", "array"])
def test_some_images_are_those_of_the_whole(tmp_path, kind):
    if kind == "files":
        source = FileImages(ImageSet.open(noisy(tmp_path / "d", (60, 45, 30))), 16)
    else:
        np.savez(tmp_path / "a.npz", arr_0=pixels_of(135), arr_1=np.arange(135) % 3)
        source = ArrayImages(tmp_path / "a.npz")
    (whole,) = source.units([range(135)])
    some = SomeImages(source, 70, CODED_IMAGES)
    assert (some.num, some.side) == (70, 16) and some.facts()["taken"] == "random 70 of 135"
    assert bool((some.chosen.diff() > 0).all())
    for size in (64, 9, 70):
        found = list(some.units(pieces(range(70), size)))
        assert torch.equal(torch.cat([unit.pixels for unit in found]), whole.pixels[some.chosen])
        assert torch.equal(torch.cat([unit.labels for unit in found]), whole.labels[some.chosen])
        assert torch.equal(torch.cat([unit.numbers for unit in found]), torch.arange(70))
    every = SomeImages(source, 200, CODED_IMAGES)
    assert every.num == 135 and every.facts()["taken"] == "all of 135"


def test_an_unreadable_one_among_some_is_named(tmp_path):
    source = FileImages(ImageSet.open(noisy(tmp_path / "d", (20, 20))), 16)
    some = SomeImages(source, 30, CODED_IMAGES)
    number = int(some.chosen[4])
    (tmp_path / "d" / source.image_set.name(number)).write_bytes(b"no image")
    (unit,) = some.units([range(30)])
    assert len(unit.pixels) == len(unit.labels) == 29 and len(unit.bad) == 1
    assert unit.numbers.tolist() == [i for i in range(30) if i != 4]
