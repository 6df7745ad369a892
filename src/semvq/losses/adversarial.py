"""Adversarial losses (L_adv of Eq. 2, decisions D7 and D14): hinge, logistic, R1, adaptive weight.

The adaptive weight is taming-transformers': the ratio of the two gradients' norms at the decoder's
last layer, here from gradients with respect to the reconstruction that training needs anyway.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

GanLoss = Literal["hinge", "logistic"]


def discriminator_loss(kind: GanLoss, real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's loss from its logits (any shape) on real and reconstructed images.

    "hinge" is halved, as taming-transformers has it.
    """
    if kind == "hinge":
        return (F.relu(1 - real.float()).mean() + F.relu(1 + fake.float()).mean()) / 2
    return F.softplus(-real.float()).mean() + F.softplus(fake.float()).mean()


def generator_loss(kind: GanLoss, fake: Tensor) -> Tensor:
    """The tokenizer's loss from the discriminator's logits on its reconstructions.

    "logistic" is the non-saturating form.
    """
    if kind == "hinge":
        return -fake.float().mean()
    return F.softplus(-fake.float()).mean()


def r1_penalty(discriminator: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Mean squared norm of the logits' gradient at real images; the caller multiplies by gamma/2.

    images: (B, 3, H, W), left unchanged. In fp32; needs a second backward, so it must not be
    compiled. A map of logits per image is summed.
    """
    images = images.detach().float().requires_grad_(True)
    with torch.enable_grad(), torch.autocast(images.device.type, enabled=False):
        logits = discriminator(images)
        (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.square().sum((1, 2, 3)).mean()


class Balanced(NamedTuple):
    """The adaptive weight, a detached scalar, and the gradient to send into the reconstruction."""

    weight: Tensor
    gradient: Tensor


def adaptive_weight(
    reconstruction_loss: Tensor,
    gan_loss: Tensor,
    reconstruction: Tensor,
    last_layer: Tensor,
    *,
    scale: float = 0.8,
    gate: float = 1.0,
    all_mean: Callable[[Tensor], Tensor] | None = None,
) -> Balanced:
    """Weight of the adversarial loss: scale * |grad rec| / (|grad gan| + 1e-4), ratio at most 1e4.

    The norms are of gradients with respect to `last_layer`, the weight of the convolution that
    made `reconstruction`. Each loss's gradient is taken once, at the reconstruction; the last
    layer's follow from it by one cheap product, exactly. `gate` in [0, 1] multiplies the weight
    (0 before the adversarial loss starts). `all_mean` averages gradients over processes (D16).

    The two losses' graphs are freed. Send the result on with `with_gradient`.
    """

    def at_last_layer(gradient: Tensor) -> Tensor:
        (found,) = torch.autograd.grad(reconstruction, last_layer, gradient, retain_graph=True)
        return (found if all_mean is None else all_mean(found)).float().norm()

    from_rec, from_gan = (_gradient(x, reconstruction) for x in (reconstruction_loss, gan_loss))
    ratio = at_last_layer(from_rec) / (at_last_layer(from_gan) + 1e-4)
    weight = gate * scale * ratio.clamp(0, 1e4)
    return Balanced(weight.detach(), (from_rec + weight * from_gan).detach())


def _gradient(loss: Tensor, reconstruction: Tensor) -> Tensor:
    """d loss / d reconstruction; zero where the loss does not depend on it."""
    if not loss.requires_grad:
        return torch.zeros_like(reconstruction)
    found = torch.autograd.grad(loss, reconstruction, allow_unused=True)[0]
    return torch.zeros_like(reconstruction) if found is None else found


def with_gradient(value: Tensor, reconstruction: Tensor, gradient: Tensor) -> Tensor:
    """A scalar equal to `value` whose backward sends `gradient` into `reconstruction`."""
    carrier = (reconstruction * gradient.detach()).sum()
    return value.detach() + (carrier - carrier.detach())
