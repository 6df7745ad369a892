"""Reference statistics of training images: measured once, kept in a file, checked on every use.

The file is an `.npz` with `mu` and `sigma`, as the ADM evaluation suite has them (Dhariwal & Nichol
2021), so that others' tools read ours. Ours also says what the numbers depend on.
"""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from semvq.backbones.inception import NUM_FEATURES
from semvq.data.images import ImageSet
from semvq.data.npz import npz_names, read_npz
from semvq.evaluation.feature_sets import KEPT_FACT, FeatureSet
from semvq.evaluation.frechet import Gaussian, with_root
from semvq.evaluation.generation import measure
from semvq.evaluation.sources import ArrayImages, FileImages
from semvq.evaluation.streaming import Setting
from semvq.evaluation.versions import versions
from semvq.files import replace_atomically

MUST_AGREE = ("network", "weights", "resize", "precision", "pixels", "side", "kept")
TrainingImages = FileImages | ArrayImages


def open_images(
    path: Path | None, side: int, pixel_range: tuple[float, float] | None, num_workers: int
) -> TrainingImages | None:
    """Training images at `path`; None where there is no path, or statistics alone."""
    if path is None:
        return None
    if path.suffix != ".npz":
        return FileImages(ImageSet.open(path), side, num_workers)
    if _has_statistics(path) and "arr_0" not in npz_names(path):
        return None
    found = ArrayImages(path, pixel_range)
    if found.side != side:
        raise ValueError(f"{path}: expected images of {side} px as the samples, found {found.side}")
    return found


def open_reference(
    images: TrainingImages | None,
    path: Path | None,
    statistics: Path | None,
    setting: Setting,
    side: int,
) -> FeatureSet | None:
    """Statistics from the file `statistics`, from another tool's at `path`, or of the images.

    What is measured is kept in `statistics`, if given. None at processes that only help. ValueError
    where there is nothing to compare with, where there are statistics twice, or where a file is of
    something else than asked for.
    """
    has_own = path is not None and _has_statistics(path)
    if has_own and statistics is not None:
        raise ValueError(
            f"{path}: expected images alone beside --statistics {statistics}, found statistics of "
            "its own; leave out --statistics, or give the images in another file or folder"
        )
    wanted = setting.feature_facts(side, {}) | KEPT_FACT
    if statistics is not None and statistics.exists():
        found = load_reference(statistics)
        check_reference(found, wanted, statistics)
        if images is not None:
            check_images(found, images, statistics)
        return _with_origin(found, statistics)
    foreign = None
    if path is not None and has_own:
        foreign = load_reference(path)
        check_reference(foreign, wanted, path)
    if images is None:
        if foreign is None:
            raise ValueError(
                "expected --data with training images or statistics to compare with, found none"
            )
        return _with_origin(foreign, path)
    measured = measure(images, setting, "measuring the training images", images.num_classes)
    if measured is None:
        return None
    assert measured.facts is not None and setting.net is not None
    # for the reader: others give figures that differ in their last digits, which nothing refuses
    facts = measured.facts | {"versions": versions(setting.net.device)}
    if foreign is not None:  # a reference batch: its own statistics, its images for pairs
        facts["mean and covariance"] = f"as in {path}"
        return replace(measured, gaussian=foreign.gaussian, facts=facts)
    measured = replace(measured, facts=facts)
    if statistics is not None:
        save_reference(measured, statistics)
    return measured


def _with_origin(found: FeatureSet, path: Path | None) -> FeatureSet:
    """Facts of another tool's file, which brings none of its own."""
    if found.facts is not None:
        return found
    facts = {"statistics": str(path), "network": "not said, taken for Inception", "figures": "FID"}
    return replace(found, facts=facts)


def check_images(
    found: FeatureSet, images: TrainingImages, file: Path, advice: str = "give another file"
) -> None:
    """ValueError, which ends with `advice`, where stored statistics are of other images.

    Their names and sizes decide, or the file's hash: no image is read.
    """
    if found.facts is None:
        return
    stored, given = found.facts["source"], images.facts()
    for name in ("fingerprint", "sha256", "crop"):
        if stored.get(name) != given.get(name):
            raise ValueError(
                f"{file}: expected statistics of {given['images']} ({name} {given.get(name)}), "
                f"found those of {stored.get('images')} ({stored.get(name)}); {advice}"
            )


def _has_statistics(path: Path) -> bool:
    return path.suffix == ".npz" and "mu" in npz_names(path)


def save_reference(found: FeatureSet, path: Path) -> None:
    """Write a set to `path`: whole or not at all."""
    arrays: dict[str, Any] = {
        "mu": found.gaussian.mean.numpy(),
        "sigma": found.gaussian.covariance.numpy(),
        "num": np.int64(found.gaussian.num),
        "facts": np.array(json.dumps(found.facts)),
    }
    if found.features is not None:
        arrays["features"] = found.features.numpy()
    if found.class_counts is not None:
        arrays["class_counts"] = found.class_counts.numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_atomically(path, partial(_write, arrays))


def _write(arrays: dict[str, Any], path: Path) -> None:
    with path.open("wb") as file:  # a name alone would get the suffix .npz
        np.savez(file, **arrays)


def load_reference(path: Path) -> FeatureSet:
    """A set that `save_reference` wrote, or `mu` and `sigma` of another tool.

    ValueError for a file with neither, or with arrays that do not fit together.
    """
    names = ("mu", "sigma", "num", "facts", "features", "class_counts")
    arrays = read_npz(path, names)
    for name in ("mu", "sigma"):
        if name not in arrays:
            held = ", ".join(npz_names(path)) or "nothing"
            raise ValueError(f"{path}: expected statistics 'mu' and 'sigma', found {held}")
    mean, covariance = (_numbers(arrays[name], name, path) for name in ("mu", "sigma"))
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise ValueError(
            f"{path}: expected mu (D,) and sigma (D, D), found {tuple(mean.shape)} and "
            f"{tuple(covariance.shape)}"
        )
    if not bool(mean.isfinite().all() and covariance.isfinite().all()):
        raise ValueError(f"{path}: expected finite statistics, found NaN or infinity")
    if "facts" not in arrays:
        return FeatureSet(Gaussian(mean, covariance, 0), None, None, None)
    try:
        facts = json.loads(str(arrays["facts"]))
        num = int(arrays["num"])
        if not isinstance(facts["source"], dict):
            raise TypeError("no source")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{path}: expected statistics that semvq wrote, found others' facts ({error})"
        ) from error
    gaussian, features, counts = Gaussian(mean, covariance, num), None, None
    if "features" in arrays:
        features = _numbers(arrays["features"], "features", path).float()
        gaussian = with_root(gaussian, features)  # to the last bit what was measured
    if "class_counts" in arrays:
        counts = _numbers(arrays["class_counts"], "class_counts", path).long()
    return FeatureSet(gaussian, features, counts, facts)


def _numbers(array: np.ndarray, name: str, path: Path) -> torch.Tensor:
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{path}: expected numbers as '{name}', found {array.dtype}")
    return torch.from_numpy(array.astype(np.float64))


def check_reference(reference: FeatureSet, facts: dict[str, Any], path: Path | None) -> None:
    """ValueError, both sides named, where `reference` was not measured as `facts` say."""
    place = f"{path}: " if path else ""
    width = len(reference.gaussian.mean)
    if reference.facts is None:
        if "inception" not in facts["network"]:
            raise ValueError(
                f"{place}expected statistics that say which network they are of, found none; those "
                f"of other tools are taken for Inception's, but the samples' are {facts['network']}"
            )
        if width != NUM_FEATURES:
            raise ValueError(f"{place}expected {NUM_FEATURES} features of Inception, found {width}")
        return
    for name in MUST_AGREE:
        expected, found = facts[name], reference.facts.get(name)
        if expected != found:
            raise ValueError(
                f"{place}expected statistics with {name} '{expected}' as the samples have, found "
                f"'{found}'; compute them anew, or evaluate as they were"
            )
