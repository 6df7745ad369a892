"""What a training costs: named devices, sizes of the paper's data sets, FLOPs of frozen networks.

What share of a device's peak training reaches, and what memory it takes: `estimate.py`.
"""

import re
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from semvq.backbones.vgg import VGG16Classifier, VGG16Features
from semvq.config import Config, config_hash, unknown
from semvq.foreign_weights import VGG16_CONVS
from semvq.losses.perceptual import LOGIT, PerceptualConfig

# Training images by family of recipes. FFHQ: 70,000 images, of which VQGAN and RQ-VAE hold out the
# same 10,000. LSUN: its training sets (cats have no other).
TRAINING_IMAGES: Mapping[str, int] = {
    "imagenet256": 1_281_167,
    "ablation256": 1_281_167,
    "ffhq256": 60_000,
    "lsun_church256": 126_227,
    "lsun_cat256": 1_657_266,
    "lsun_bedroom256": 3_033_042,
}


@dataclass(frozen=True)
class Device:
    """Dense peaks in TFLOP/s from the vendor's data sheet, without sparsity.

    `peak` is of the precision that training has there by default: bf16, and fp32 on a CPU.
    `peak_fp32` is of fp32 convolutions, which GPUs do as TF32. `memory` is a GPU's own, in GB.
    """

    name: str
    peak: float
    peak_fp32: float
    memory: float | None = None


DEVICES: Mapping[str, Device] = {
    "h100": Device("NVIDIA H100 SXM", 989.4, 494.7, 80),
    "h200": Device("NVIDIA H200 SXM", 989.4, 494.7, 141),
    "a100": Device("NVIDIA A100", 312.0, 156.0, 80),
    "a100-40gb": Device("NVIDIA A100 40GB", 312.0, 156.0, 40),
    "rtx4090": Device("NVIDIA RTX 4090", 165.2, 82.6, 24),
    # 2 cores x 3 GHz x 2 units of fused multiply-add x 16 lanes of AVX-512
    "cpu2": Device("two CPU cores", 0.384, 0.384),
}

# Multiply-adds of the small classifiers at 224 px, as their authors publish them
_CLASSIFIER_MACS = {"efficientnet-lite0": 407e6, "mobilenet-v2": 300e6}
# Weights of the frozen networks, by asset
_FROZEN = {
    "vgg16": 14_714_688,
    "vgg16-full": 138_357_544,
    "efficientnet-lite0": 4_652_008,
    "mobilenet-v2": 3_504_872,
}
_VGG_WIDTHS = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
_VGG_DENSE = ((0, 4096, 512 * 7 * 7), (3, 4096, 4096), (6, 1000, 4096))


def find_devices(text: str) -> tuple[Device, int]:
    """The device and the number of them that "h200" or "h200x8" names; ValueError for another."""
    if text in DEVICES:
        return DEVICES[text], 1
    name, _, count = text.rpartition("x")
    if name not in DEVICES:
        found = unknown("device", text, list(DEVICES))
        raise ValueError(f"{found}; give one of them, or several as in h200x8")
    if not re.fullmatch("[0-9]{1,6}", count) or not int(count):
        raise ValueError(
            f"expected how many devices after '{name}x', at least 1, found '{count}'; give "
            f"{name}x8 for eight"
        )
    return DEVICES[name], int(count)


def hours(flop: float, flop_fp32: float, device: Device, share: float, num_devices: int) -> float:
    """Hours of `flop` in the device's precision and `flop_fp32` in fp32, at a share of the peak.

    Several devices are taken to be as many times as fast. Three digits are kept.
    """
    seconds = (flop / device.peak + flop_fp32 / device.peak_fp32) / 1e12 / share / num_devices
    return float(f"{seconds / 3600:.3g}")


def training_images(recipe_name: str) -> int | None:
    """Images of an epoch of a recipe of the paper's; None for data sets that are the user's."""
    families = (n for name, n in TRAINING_IMAGES.items() if recipe_name.startswith(f"{name}_"))
    return next(families, None)


def perceptual_flop(config: PerceptualConfig, resolution: int) -> float:
    """FLOPs per image of the perceptual loss: forward for two images, backward to one of them.

    The networks are frozen, so their backward pass costs what a forward pass does.
    """
    layers = config.layer_weights()
    activations = tuple(layer for layer in layers if layer != LOGIT)
    forward = 0.0
    if activations:
        forward += _vgg_flop(config.vgg_size or resolution, activations)
    if LOGIT in layers:
        forward += _classifier_flop(config.logits_from, config.logits_size or resolution)
    return 3 * forward


def perceptual_parameters(config: PerceptualConfig) -> int:
    """Weights of the perceptual loss's frozen networks, LPIPS's thousand not among them."""
    return sum(_FROZEN.get(name, 0) for name in config.assets())


_FOUND: dict[Any, dict[str, Any]] = {}


def once(make: Callable[..., dict[str, Any]], *given: Any) -> dict[str, Any]:
    """What `make` finds of equal configs, found once; a copy.

    A table's recipes have few networks, and each takes a second.
    """
    key = (make, *((type(x), config_hash(x)) if isinstance(x, Config) else x for x in given))
    if key not in _FOUND:
        _FOUND[key] = make(*given)
    return deepcopy(_FOUND[key])


def count_flop(module: nn.Module, *inputs: Any) -> int:
    """FLOPs of one forward pass."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(*inputs)
    return counter.get_total_flops()


def count_outputs(module: nn.Module, *inputs: Any) -> int:
    """Numbers that the layers of one forward pass put out: what a backward pass keeps, about."""
    found: list[int] = []

    def note(layer: nn.Module, args: Any, output: Any) -> None:
        found.append(output.numel() if isinstance(output, Tensor) else 0)

    layers = [m for m in module.modules() if not any(True for _ in m.children())]
    hooks = [layer.register_forward_hook(note) for layer in layers]
    with torch.no_grad():
        module(*inputs)
    for hook in hooks:
        hook.remove()
    return sum(found)


@cache
def _vgg_flop(size: int, layers: tuple[str, ...]) -> int:
    with torch.device("meta"):
        return count_flop(VGG16Features(_vgg_weights()), torch.empty(1, 3, size, size), layers)


@cache
def _classifier_flop(name: str, size: int) -> float:
    if name in _CLASSIFIER_MACS:
        return 2 * _CLASSIFIER_MACS[name] * (size / 224) ** 2
    with torch.device("meta"):
        return count_flop(VGG16Classifier(_vgg_weights()), torch.empty(1, 3, size, size))


def _vgg_weights() -> dict[str, Tensor]:
    """Tensors of the shapes of VGG16's weights, without content."""
    weights: dict[str, Tensor] = {}
    for index, width, out in zip(VGG16_CONVS, (3, *_VGG_WIDTHS), _VGG_WIDTHS):
        weights[f"features.{index}.weight"] = torch.empty(out, width, 3, 3)
        weights[f"features.{index}.bias"] = torch.empty(out)
    for index, out, width in _VGG_DENSE:
        weights[f"classifier.{index}.weight"] = torch.empty(out, width)
        weights[f"classifier.{index}.bias"] = torch.empty(out)
    return weights
