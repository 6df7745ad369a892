"""Options that would be passed over in silence are refused, and controls are fair."""

from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

from semvq.data.images import ImageSet
from semvq.evaluate_command import _check_options
from semvq.evaluation.generation import generation


def options(protocol: str, **given: Path) -> Namespace:
    paths = {"statistics": None, "val": None, "save_images": None, "data": None} | given
    return Namespace(protocol=protocol, **paths)


@pytest.mark.parametrize("name", ["statistics", "val", "save_images"])
@pytest.mark.parametrize("protocol", ["reconstruction", "likelihood", "probe"])
def test_options_of_another_protocol(name, protocol):
    words = f"--{name.replace('_', '-')}: expected --protocol generation.*{protocol}; leave it out"
    with pytest.raises(ValueError, match=words):
        _check_options(options(protocol, **{name: Path("x")}))
    _check_options(options("generation", **{name: Path("x")}))
    _check_options(options(protocol))


def test_training_photos_are_no_control_of_themselves(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="expected other photos as --val than as --data"):
        _check_options(options("generation", val=tmp_path / "link", data=tmp_path))
    _check_options(options("generation", val=tmp_path / "val", data=tmp_path / "train"))


@pytest.mark.parametrize("name", ["images.npy", "statistics.npz"])
def test_arrays_are_no_folder_of_images(tmp_path, name):
    with (tmp_path / name).open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(ValueError, match=f"{name}: expected a folder or a tar.*found arrays"):
        ImageSet.open(tmp_path / name)


def test_one_sample_is_no_distribution():
    with pytest.raises(ValueError, match="expected at least 2 samples.*found 1"):
        list(generation(Namespace(num=1), None, None))
