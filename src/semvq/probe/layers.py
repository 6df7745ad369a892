"""At which depth of VGG16 two images differ: low-level layers beside semantic ones.

What Fig. 5 shows as pictures: a prediction may miss every texture (low) and still show the right
thing (semantic). Per layer LPIPS's distance, per image, so that means can be bootstrapped. Layers
have scales of their own: read each beside its value between two different photos.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from semvq.losses.perceptual import Features, lpips_term, resize

LOW_LAYERS = ("relu1_2", "relu2_2", "relu3_3")
SEMANTIC_LAYERS = ("relu4_3", "relu5_3")


@torch.no_grad()
def layer_distances(
    reconstruction: Tensor,
    images: Tensor,
    features: Features,
    linear: Mapping[str, Tensor],
    vgg_size: int | None = None,
) -> dict[str, Tensor]:
    """Distances float32 (B,) by layer, and their means "low" and "semantic" over layers.

    Both images (B, 3, H, W) in [-1, 1], clamped to it as pixels are, and resized to `vgg_size`
    (None: as they are; D12 asks for 128 below 128 pixels). `features` and `linear` as in
    `PerceptualConfig.build`: `load_vgg16()` and `load_lpips_linear()`, whose five layers add up to
    LPIPS v0.1 (VGG16). Activations of unit length per position, squared differences weighted per
    channel, mean over positions. Raises ValueError for shapes that differ or a layer without
    weights.
    """
    if reconstruction.shape != images.shape:
        raise ValueError(
            f"expected two batches of one shape, found {tuple(reconstruction.shape)} and "
            f"{tuple(images.shape)}"
        )
    layers = LOW_LAYERS + SEMANTIC_LAYERS
    for layer in layers:
        if layer not in linear:
            raise ValueError(f"expected LPIPS weights of {layer}, found {sorted(linear)}")
    with torch.autocast(images.device.type, enabled=False):
        found, wanted = (
            features(resize(x.float().clamp(-1, 1), vgg_size), layers)
            for x in (reconstruction, images)
        )
        distances = {
            layer: _per_image(found[layer], wanted[layer], linear[layer]) for layer in layers
        }
    for name, group in (("low", LOW_LAYERS), ("semantic", SEMANTIC_LAYERS)):
        distances[name] = torch.stack([distances[layer] for layer in group]).mean(0)
    return distances


def _per_image(found: Tensor, wanted: Tensor, linear: Tensor) -> Tensor:
    """`lpips_term`, which averages over a batch, of every image alone; (B,)."""
    weight = linear.detach().to(found).reshape(1, -1, 1, 1)
    pairs = zip(found.split(1), wanted.split(1))
    return torch.stack([lpips_term(a, b, weight) for a, b in pairs])
