"""Around the models: reading JPEGs, caching tokens, and FID."""

import itertools
import shutil
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from bench.case import Case, Precision, Row, Setting, counted
from bench.networks import inception_weights, random_inception
from bench.plain import data as plain
from bench.plain import tokenizer as plain_tokenizer
from bench.tasks import noise_images, tokenizer
from bench.tokenizer_rows import forward_cost, shape
from semvq.backbones.inception import SIZE, InceptionV3
from semvq.data.images import DataConfig, ImageSet, TrainImages, stream
from semvq.data.tokens import write_tokens
from semvq.evaluation.frechet import Moments, fit, frechet_distance

VIEWS = 2  # entries per image in the token cache


def jpegs(setting: Setting, folder: Path) -> tuple[Path, int]:
    """A folder of JPEGs of ImageNet's usual size (small ones on a CPU), and how many."""
    num = setting.pick(512, 64, 32, 6)
    height, width = setting.pick((375, 500), (96, 128), (48, 64), (20, 24))
    return noise_images(folder, num, height, width, classes=4, kind="jpg"), num


def load_images(setting: Setting) -> Case:
    """An epoch of training crops, decoded in this process: images per second and core."""
    folder, num = jpegs(setting, temporary_folder())
    side = setting.pick(256, 64, 32, 16)
    config = DataConfig(side, min_crop=0.8, random_position=True, flip=True)

    def ours() -> Tensor:
        # opened anew: a set whose images it has seen keeps them decoded
        data = TrainImages(ImageSet.open(folder), config, seed=0)
        size = min(32, num)
        batches = itertools.islice(stream(data, 0, size), -(-num // size))
        return torch.cat([batch["image"] for batch in batches])[:num]

    return Case(
        ours,
        lambda: plain.training_images(folder, config, seed=0),
        num,
        {"images": num, "resolution": side, "workers": 0},
        tolerance=0.0,
    )


def cache_tokens(setting: Setting) -> Case:
    """`semvq encode`: two views of every JPEG to codes on disk, images (not views) per second."""
    model = tokenizer(setting)
    root = temporary_folder()
    folder, num = jpegs(setting, root / "images")
    weights, target = plain_tokenizer.weights_of(model), root / "cache"
    config = DataConfig(model.config.resolution, flip=True)
    space = model.code_space_hash()

    def encode(images: Tensor) -> Tensor:
        with setting.autocast():
            return model.encode(images.to(setting.device)).cpu()

    def ours() -> Tensor:
        shutil.rmtree(target, ignore_errors=True)
        cache = write_tokens(
            target, encode, ImageSet.open(folder), config,
            num_views=VIEWS, num_codes=model.num_codes, code_space_hash=space,
        )  # fmt: skip
        assert cache is not None
        views = [cache.read(range(num), view)[0] for view in range(VIEWS)]
        return torch.stack(views, 1)

    def their_encode(images: Tensor) -> Tensor:
        with setting.autocast():
            return plain_tokenizer.encode(weights, images.to(setting.device))

    def eager() -> Tensor:
        return plain.cached_tokens(
            folder, model.config.resolution, their_encode, root / "codes.npy"
        )

    flop, moved = forward_cost(model.config, setting, "encode")
    return Case(
        ours, eager, num, {"images": num, "views": VIEWS, **shape(model)},
        flop * num * VIEWS, moved * num * VIEWS, setting.convolution_rate, tolerance=0.02,
    )  # fmt: skip


def fid(setting: Setting, fast: bool) -> Case:
    """Features of uint8 images, their moments, and the distance to a reference Gaussian."""
    divide = setting.pick(1, 4, 8, 16)
    torch.manual_seed(0)
    net = random_inception(divide, torch.device(setting.device))
    num, side = setting.pick(1024, 64, 32, 24), setting.pick(256, 64, 32, 16)
    pixels = setting.integers(256, num, 3, side, side).to(torch.uint8).cpu()
    reference = fit(net(setting.integers(256, num, 3, side, side, seed=1).to(torch.uint8).cpu()))
    # the plain version knows no thin root, so ours gets none
    reference = replace(reference, thin=None)
    features = net.fast if fast else net

    def ours() -> Tensor:
        moments = Moments(net.width)
        for part in pixels.split(64):
            moments.add(features(part))
        return torch.tensor(frechet_distance(moments.gaussian(), reference), dtype=torch.float64)

    def eager() -> Tensor:
        def one(image: Tensor) -> Tensor:
            with torch.autocast(setting.device, torch.bfloat16, enabled=fast):
                return net.module(image.to(setting.device)).float()

        return plain.frechet(pixels, one, reference.mean, reference.covariance)

    with torch.device("meta"):
        layers = InceptionV3(inception_weights(divide)).layers
        images = torch.empty(1, 3, SIZE, SIZE)
    rate: Precision = "bf16" if fast and setting.device == "cuda" else "fp32"
    flop, moved = counted(lambda: layers(images), 2 if rate == "bf16" else 4)
    return Case(
        ours, eager, num, {"images": num, "resolution": side, "features": net.width},
        flop * num, moved * num, rate, tolerance=0.05 if fast else 1e-2,
    )  # fmt: skip


_folders: list[tempfile.TemporaryDirectory] = []


def temporary_folder() -> Path:
    """Gone when this process ends."""
    _folders.append(tempfile.TemporaryDirectory())
    return Path(_folders[-1].name)


ROWS = (
    Row("load-images", "images/s", load_images, "JPEG folder to training crops, one core"),
    Row("cache-tokens", "images/s", cache_tokens, "JPEG folder to codes on disk"),
    Row("fid", "images/s", partial(fid, fast=False), "Inception in strict fp32, moments, distance"),
    Row("fid-fast", "images/s", partial(fid, fast=True), "the same with features in bf16"),
)
