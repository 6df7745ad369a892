"""Networks whose features the distances are measured in: uint8 images to (B, D), always fp32.

One pixel path for every number: images in [-1, 1] are rounded to uint8 (as if saved without loss),
then each network resizes them as it says. Chunks of fixed size go through the network, the last one
filled up, so that an image's features do not depend on what was asked for beside it: kernels for
few images, or for other counts of threads, round in other ways.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from semvq import assets
from semvq.backbones.efficientnet_lite import EfficientNetLite0
from semvq.backbones.inception import NUM_FEATURES, InceptionV3
from semvq.backbones.mobilenet import MobileNetV2
from semvq.backbones.vgg import VGG16Features
from semvq.config import unknown
from semvq.data.images import to_float
from semvq.foreign_weights import read_inception_script, read_inception_torch
from semvq.precision import fp32_products

# Images that go through a network at a time. Always as many, for the bits of a result depend on it;
# a GPU gains by more of them (EXPERIMENTS.md, 2026-11-26, trials).
CHUNK, CUDA_CHUNK = 32, 64
CLASSIFIER_SIZE = 224


@dataclass(frozen=True)
class FeatureNet:
    """A frozen network under a name, and the facts that a number measured in it depends on.

    `features`: uint8 (B, 3, H, W) to float32 (B, D). `logits`: those features to classes, None
    where the weights hold no classifier. `score` is what the classifier's score may be called.
    """

    name: str
    weights: str  # sha256 of the parameters
    resize: str
    width: int  # D
    module: nn.Module
    features: Callable[[Tensor], Tensor]
    logits: Callable[[Tensor], Tensor] | None
    score: str = ""

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self.module.buffers()).device

    def facts(self) -> dict[str, str]:
        """Name, weights and resize, as every result carries them."""
        return {"network": self.name, "weights": self.weights, "resize": self.resize}

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Features (B, D), float32 on the CPU, of uint8 images (B, 3, H, W) on any device."""
        with strict_fp32():
            return self._in_chunks(images)

    @torch.no_grad()
    def class_logits(self, features: Tensor) -> Tensor:
        """Logits (B, K) on the CPU of features (B, D); only where the weights have a classifier."""
        assert self.logits is not None, f"{self.name} has no classifier"
        with strict_fp32():
            return self.logits(features.to(self.device)).cpu()

    @torch.no_grad()
    def fast(self, images: Tensor) -> Tensor:
        """As the call, in bfloat16 where the device gains by it: a little off, see `evaluate`."""
        with torch.autocast(self.device.type, torch.bfloat16):
            return self._in_chunks(images)

    def _in_chunks(self, images: Tensor) -> Tensor:
        parts = []
        size = CUDA_CHUNK if self.device.type == "cuda" else CHUNK
        for chunk in images.split(size):
            missing = chunk.new_zeros(size - len(chunk), *chunk.shape[1:])
            found = self.features(torch.cat([chunk, missing]).to(self.device))
            parts.append(found[: len(chunk)].float().cpu())
        return torch.cat(parts)


@contextlib.contextmanager
def strict_fp32() -> Iterator[None]:
    """Inside, nothing is rounded to TF32, and cuDNN's kernels are the deterministic ones."""
    with (
        fp32_products("highest"),
        torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=True, allow_tf32=False
        ),
    ):
        yield


def load_network(name: str, device: torch.device, file: Path | None = None) -> FeatureNet:
    """The network of that name; `file` holds other Inception weights than the packaged ones.

    ValueError for an unknown name, or a file for a network that takes none.
    """
    check_network(name)
    if file is not None and name != "inception":
        raise ValueError(f"expected --network inception beside a weights file, found {name}")
    return NETWORKS[name](device, file)


def check_network(name: str) -> None:
    """ValueError for an unknown network; nothing is loaded."""
    if name not in NETWORKS:
        raise ValueError(unknown("network", name, list(NETWORKS)))


def _inception(device: torch.device, file: Path | None) -> FeatureNet:
    whole = "inception-full"  # with the classifier, that IS needs; its features are the same
    name = whole if assets.is_cached(whole) else "inception"
    tensors = assets.load(name) if file is None else read_inception(file)
    try:
        net = InceptionV3(tensors).to(device).eval()
    except KeyError as error:
        raise ValueError(f"{file}: expected Inception weights, found none named {error}") from error
    return FeatureNet(
        name="inception-v3 (2015-12-05), pool3",
        weights=_hash({k: v for k, v in tensors.items() if not k.startswith("output.")}),
        resize="TF1 bilinear, 299",
        width=NUM_FEATURES,
        module=net,
        features=net,
        logits=None if net.output is None else net.logits,
        score="Inception Score",
    )


def read_inception(file: Path) -> dict[str, Tensor]:
    """Inception weights of a file: ours, a TorchScript or the usual state dict of FID tools."""
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        data = file.read_bytes()
        script = b"constants.pkl" in data and b"code/__torch__" in data
        return read_inception_script(data) if script else read_inception_torch(data)
    except Exception as error:
        raise ValueError(
            f"{file}: expected Inception weights (.safetensors, TorchScript or the state dict of "
            f"pytorch-fid), found {error}"
        ) from error


def _vgg16(device: torch.device, file: Path | None) -> FeatureNet:
    tensors = assets.load("vgg16")
    net = VGG16Features(tensors).to(device).eval()

    def features(images: Tensor) -> Tensor:
        return net(resized(images), ("relu5_3",))["relu5_3"].float().mean((2, 3))

    return FeatureNet(
        "VGG16, relu5_3, mean", _hash(tensors), _resize_words(), 512, net, features, logits=None
    )


def _classifier(kind: type[MobileNetV2] | type[EfficientNetLite0], asset: str, name: str):  # type: ignore[no-untyped-def]
    def load(device: torch.device, file: Path | None) -> FeatureNet:
        tensors = assets.load(asset)
        net = kind(tensors).to(device).eval()
        return FeatureNet(
            name=f"{name}, pooled",
            weights=_hash(tensors),
            resize=_resize_words(),
            width=net.classifier.weight.shape[1],
            module=net,
            features=lambda images: net.features(resized(images)),
            logits=net.classifier,
            score=f"classifier score ({name})",
        )

    return load


NETWORKS: dict[str, Callable[[torch.device, Path | None], FeatureNet]] = {
    "inception": _inception,
    "vgg16": _vgg16,
    "mobilenet-v2": _classifier(MobileNetV2, "mobilenet-v2", "MobileNetV2"),
    "efficientnet-lite0": _classifier(
        EfficientNetLite0, "efficientnet-lite0", "EfficientNet-Lite0"
    ),
}


def resized(images: Tensor) -> Tensor:
    """uint8 images of any size to float in [-1, 1] at the classifiers' size."""
    size = (CLASSIFIER_SIZE, CLASSIFIER_SIZE)
    x = F.interpolate(to_float(images), size=size, mode="bicubic", antialias=True)
    return x.clamp(-1, 1)


def _resize_words() -> str:
    return f"bicubic with antialiasing, {CLASSIFIER_SIZE}"


def _hash(tensors: dict[str, Tensor]) -> str:
    return assets.tensors_hash(tensors)
