"""What the tests of evaluation share: a tiny network, photos of unequal classes, a way to run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from semvq.cli import main
from semvq.evaluation.features import FeatureNet
from tests.toy import COLOURS

WIDTH = 12


class Means(nn.Module):
    """Mean colours of the four quarters, a stand-in for features that takes no time."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(1 / 255), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(images.float() * self.scale, 2).flatten(1)


def toy_net(name: str = "toy", weights: str = "a" * 64, resize: str = "none") -> FeatureNet:
    net = Means()
    return FeatureNet(
        name, weights, resize, WIDTH, net, net, lambda x: 9 * x[:, :4], "classifier score (toy)"
    )


def toy_network(**changes: str) -> Callable[[torch.device, Path | None], FeatureNet]:
    """An entry of `NETWORKS`."""
    return lambda device, file: toy_net(**changes)


def noisy(folder: Path, counts: tuple[int, ...], seed: int = 0, side: int = 20) -> Path:
    """Class folders with that many noisy PNG files each."""
    rng = np.random.default_rng(seed)
    for (name, colour), count in zip(COLOURS.items(), counts):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            pixels = np.array(colour) + rng.normal(0, 40, (side, side + 4, 3))
            image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            image.save(folder / name / f"{index}.png")
    return folder


def samples(folder: Path, num: int, seed: int = 0, side: int = 16) -> Path:
    """A flat folder of square PNG files, as generators of others write them."""
    folder.mkdir(parents=True)
    for index, pixels in enumerate(pixels_of(num, seed, side)):
        Image.fromarray(pixels).save(folder / f"{index:05d}.png")
    return folder


def pixels_of(num: int, seed: int = 0, side: int = 16) -> np.ndarray:
    """uint8 (num, side, side, 3)."""
    rng = np.random.default_rng(seed)
    base = rng.integers(60, 200, (num, 1, 1, 3))
    return (base + rng.integers(-50, 50, (num, side, side, 3))).astype(np.uint8)


def status(line: str, *more: object) -> int:
    """Exit code of a command line, run in this process."""
    with pytest.raises(SystemExit) as stop:
        main([*line.split(), *map(str, more)])
    return stop.value.code


def record(line: str, *more: object, file: Path) -> dict[str, Any]:
    """What `semvq evaluate …` wrote with --json."""
    assert status(f"evaluate {line}", *more, "--json", file) == 0
    return json.loads(file.read_text())
