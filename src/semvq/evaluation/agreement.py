"""Class agreement: does a classifier see the class a sample was asked to be?

A linear classifier on frozen MobileNetV2 features, which no loss uses; it is fitted on real
training photos only, and its accuracy on real held-out photos says how far to trust it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from semvq.backbones.mobilenet import MobileNetV2

FEATURE_SIZE = 128  # side in pixels to which images are resized for the features
CHUNK = 32


@torch.no_grad()
def features(backbone: MobileNetV2, images: Tensor) -> Tensor:
    """Pooled features (N, 1280) of images (N, 3, H, W) in [-1, 1], on the backbone's device."""
    size = (FEATURE_SIZE, FEATURE_SIZE)
    device = next(backbone.buffers()).device
    parts = []
    for chunk in images.split(CHUNK):
        x = chunk.to(device).float()
        resized = F.interpolate(x, size=size, mode="bicubic", antialias=True)
        parts.append(backbone.features(resized.clamp(-1, 1)))
    return torch.cat(parts)


class LinearClassifier:
    """Multinomial logistic regression with an L2 penalty, fitted to convergence by L-BFGS."""

    def __init__(self, x: Tensor, y: Tensor, num_classes: int, penalty: float = 1e-3) -> None:
        self.mean, self.scale = x.mean(0), x.std(0).clamp_min(1e-6)
        self.weight = x.new_zeros(num_classes, x.shape[1], requires_grad=True)
        self.bias = x.new_zeros(num_classes, requires_grad=True)
        parameters = [self.weight, self.bias]
        solver = torch.optim.LBFGS(parameters, max_iter=200, line_search_fn="strong_wolfe")
        z = (x - self.mean) / self.scale

        def closure() -> Tensor:
            solver.zero_grad()
            loss = F.cross_entropy(z @ self.weight.T + self.bias, y.to(z.device))
            loss = loss + penalty * self.weight.square().sum()
            loss.backward()
            return loss

        solver.step(closure)

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        """Most likely class of each feature vector; int64 (N,)."""
        return ((x - self.mean) / self.scale @ self.weight.T + self.bias).argmax(1)


def class_agreement(
    backbone: MobileNetV2, classifier: LinearClassifier, images: Tensor, classes: Tensor
) -> float:
    """Share of images whose predicted class is the one asked for."""
    return accuracy(classifier.predict(features(backbone, images)), classes)


def accuracy(predicted: Tensor, classes: Tensor) -> float:
    """Share of equal entries."""
    return float((predicted.cpu() == classes.cpu()).float().mean())
