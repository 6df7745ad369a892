"""The semantic-enhanced perceptual loss (Eq. 3): where the semantic ratio alpha enters.

Per layer the difference between activations of reconstruction and image, weighted by alpha on the
semantic layers and 1 - alpha on the detail layers. Three forms of the difference are decision D5,
input sizes D12, the source of the logits D6.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semvq.backbones.efficientnet_lite import load_efficientnet_lite0
from semvq.backbones.mobilenet import load_mobilenet_v2
from semvq.backbones.vgg import load_lpips_linear, load_vgg16, load_vgg16_classifier
from semvq.config import Config

LOGIT = "logit"
_LOW = ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3")

# The layer sets of Sec. 3.3.2 and of Table 6.
LAYER_SETS: dict[str, tuple[str, ...]] = {
    "low": _LOW,
    "sem": ("relu5_3", LOGIT),
    "A": (*_LOW, LOGIT),
    "B": (*_LOW[1:], LOGIT),
    "C": (*_LOW[2:], LOGIT),
    "D": (*_LOW[3:], LOGIT),
    "E": (LOGIT,),
}

Features = Callable[[Tensor, tuple[str, ...]], dict[str, Tensor]]
Classifier = Callable[[Tensor], Tensor]
Difference = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class PerceptualConfig(Config):
    """Settings of the perceptual loss; the default is phase 1 at 256 px as printed.

    `form` is how a layer's difference is measured, see `PerceptualLoss`. Images are resized to
    `vgg_size` for VGG and `logits_size` for the classifier; None leaves them as they are.
    """

    alpha: float = 1.0
    semantic_layers: tuple[str, ...] = LAYER_SETS["sem"]
    detail_layers: tuple[str, ...] = LAYER_SETS["low"]
    form: Literal["paper", "balanced", "lpips"] = "paper"
    weight: float = 1.0
    logits_from: Literal["vgg16-full", "efficientnet-lite0", "mobilenet-v2"] = "vgg16-full"
    vgg_size: int | None = None
    logits_size: int | None = 224

    def layer_weights(self) -> dict[str, float]:
        """w_l = alpha [l in semantic] + (1 - alpha) [l in detail] (Eq. 3), where not zero."""
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"expected alpha in [0, 1], found {self.alpha}")
        known = LAYER_SETS["A"]
        weights: dict[str, float] = {}
        shares = ((self.alpha, self.semantic_layers), (1 - self.alpha, self.detail_layers))
        for share, layers in shares:
            for layer in layers:
                if layer not in known:
                    raise ValueError(f"expected layers among {', '.join(known)}, found '{layer}'")
                weights[layer] = weights.get(layer, 0.0) + share
        return {layer: weights[layer] for layer in known if weights.get(layer, 0.0) > 0}

    def assets(self) -> tuple[str, ...]:
        """Names of the pretrained weights this loss looks through."""
        layers = self.layer_weights()
        names = ["vgg16"] if set(layers) - {LOGIT} else []
        names += ["lpips-linear"] if names and self.form == "lpips" else []
        return (*names, self.logits_from) if LOGIT in layers else tuple(names)

    def load(self) -> "PerceptualLoss":
        """The loss with its pretrained networks, fetched where they are not there yet."""
        classifiers = {
            "vgg16-full": load_vgg16_classifier,
            "efficientnet-lite0": load_efficientnet_lite0,
            "mobilenet-v2": load_mobilenet_v2,
        }
        needed = self.assets()
        return self.build(
            load_vgg16() if "vgg16" in needed else None,
            classifiers[self.logits_from]() if self.logits_from in needed else None,
            load_lpips_linear() if "lpips-linear" in needed else None,
        )

    def build(
        self,
        features: Features | None = None,
        classifier: Classifier | None = None,
        linear: Mapping[str, Tensor] | None = None,
    ) -> "PerceptualLoss":
        """The loss over given networks; None is allowed for what no weighted layer needs.

        features(images, layers) -> activations by layer; classifier(images) -> logits (B, C);
        linear: LPIPS's weight (C,) by layer name, for form "lpips".
        """
        return PerceptualLoss(self, features, classifier, linear)


NO_PERCEPTUAL = PerceptualConfig(alpha=0.0, detail_layers=())  # no layers, no networks: always 0


class PerceptualLoss(nn.Module):
    """Weighted sum over layers of the difference between two images' activations.

    Forms: "paper" is the mean squared difference (1/HWC) |y' - y|^2; "balanced" divides that by
    its mean over pairs of real images, so that every layer counts alike (`calibrate` first);
    "lpips" takes activations of unit length per position, squared differences weighted per
    channel by LPIPS v0.1 and averaged over positions. LPIPS has no weights for logits: there the
    "lpips" form is one minus the correlation of the two logit vectors, in [0, 2].
    """

    scales: Tensor
    num_calibrations: Tensor

    def __init__(
        self,
        config: PerceptualConfig,
        features: Features | None,
        classifier: Classifier | None,
        linear: Mapping[str, Tensor] | None,
    ) -> None:
        super().__init__()
        self.config = config
        self.layer_weights = config.layer_weights()
        self.activations = tuple(layer for layer in self.layer_weights if layer != LOGIT)
        if self.activations and features is None:
            raise ValueError(f"expected a network for the layers {self.activations}, found None")
        if LOGIT in self.layer_weights and classifier is None:
            raise ValueError(f"expected a classifier ({config.logits_from}) for logits, found None")
        self.features, self.classifier = features, classifier
        if config.form == "lpips":
            self._keep_linear(linear or {})
        # Not a number until `calibrate` was called; a checkpoint brings it back as it was.
        self.register_buffer("scales", torch.full((len(self.layer_weights),), torch.nan))
        self.register_buffer("num_calibrations", torch.zeros(()))
        self._calibrated = False

    def _keep_linear(self, linear: Mapping[str, Tensor]) -> None:
        for layer in self.activations:
            if layer not in linear:
                raise ValueError(f"expected LPIPS weights of {layer}, found {sorted(linear)}")
            weight = linear[layer].detach().float().reshape(1, -1, 1, 1)
            self.register_buffer(f"linear_{layer}", weight, persistent=False)

    def forward(self, reconstruction: Tensor, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss between two (B, 3, H, W) in [-1, 1], and its unweighted terms detached, by name.

        Always in fp32; gradients flow to the reconstruction only.
        """
        terms = self.terms(reconstruction, images)
        if self.config.form == "balanced":
            self._require_calibration()
            terms = {layer: t / s for (layer, t), s in zip(terms.items(), self.scales)}
        zero = reconstruction.new_zeros((), dtype=torch.float32)
        loss = sum((self.layer_weights[layer] * t for layer, t in terms.items()), zero)
        logs = {f"perceptual_{layer}": term.detach() for layer, term in terms.items()}
        return self.config.weight * loss, {"perceptual": loss.detach(), **logs}

    def terms(self, reconstruction: Tensor, images: Tensor) -> dict[str, Tensor]:
        """The difference per layer in the configured form, before weights and scales."""
        with torch.autocast(images.device.type, enabled=False):
            found = self._activations(reconstruction.float())
            with torch.no_grad():
                wanted = self._activations(images.float())
            return {layer: self._difference(layer)(found[layer], wanted[layer]) for layer in found}

    @torch.no_grad()
    def calibrate(self, images: Tensor) -> None:
        """Measure each layer's mean difference between different real images ("balanced", D5).

        Call on one or more batches (B >= 2) before training; the mean over calls is kept in the
        buffer `scales`. ValueError where a batch's images do not differ.
        """
        values = torch.stack(list(self.terms(images.roll(1, 0), images).values()))
        mean = torch.where(self.num_calibrations > 0, self.scales, 0.0)
        self.num_calibrations += 1
        self.scales.copy_(mean + (values - mean) / self.num_calibrations)
        if not (self.scales > 0).all():
            raise ValueError(
                "expected different images to calibrate the perceptual loss on, found a batch of "
                f"{len(images)} whose differences are {dict(zip(self.layer_weights, values))}"
            )

    def _activations(self, images: Tensor) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        if self.activations:
            assert self.features is not None
            activations = self.features(resize(images, self.config.vgg_size), self.activations)
            found = {layer: activations[layer] for layer in self.activations}
        if LOGIT in self.layer_weights:
            assert self.classifier is not None
            found[LOGIT] = self.classifier(resize(images, self.config.logits_size))
        return found

    def _difference(self, layer: str) -> Difference:
        if self.config.form != "lpips":
            return F.mse_loss
        if layer == LOGIT:
            return uncorrelated
        weight = self.get_buffer(f"linear_{layer}")
        return lambda found, wanted: lpips_term(found, wanted, weight)

    def _require_calibration(self) -> None:
        # Read back from the device once, then remembered: a wait in every step would cost.
        if not self._calibrated and not self.scales.isfinite().all():
            raise ValueError(
                "expected a calibrated loss for form 'balanced', found none: call "
                "`calibrate(images)` on real images first"
            )
        self._calibrated = True


def resize(images: Tensor, size: int | None) -> Tensor:
    """Images to size x size, bicubic and antialiased (D12); None or the same size: untouched."""
    if size is None or tuple(images.shape[-2:]) == (size, size):
        return images
    return F.interpolate(images, (size, size), mode="bicubic", antialias=True)


def lpips_term(found: Tensor, wanted: Tensor, weight: Tensor) -> Tensor:
    """LPIPS of one layer: activations (B, C, H, W), weight (1, C, 1, 1); mean over positions."""
    difference = unit_length(found) - unit_length(wanted)
    return (weight * difference.square()).sum(1).mean()


def uncorrelated(found: Tensor, wanted: Tensor) -> Tensor:
    """One minus the correlation of logit vectors (B, C), averaged: 0 when equal, at most 2."""
    centred = (x - x.mean(1, keepdim=True) for x in (found, wanted))
    a, b = (unit_length(x) for x in centred)
    return (a - b).square().sum(1).mean() / 2


def unit_length(x: Tensor) -> Tensor:
    """Scale vectors along dimension 1 to length 1; a zero vector stays, with finite gradient."""
    return x * (x.square().sum(1, keepdim=True) + 1e-8).rsqrt()
