"""The probe's pictures (Figs. 5, 6): original | reconstruction | prediction, and error maps."""

from collections.abc import Sequence

import matplotlib
import torch
import torch.nn.functional as F
from torch import Tensor

from semvq.data.images import image_grid
from semvq.probe.teacher_forcing import Prediction


def panel(images: Tensor, reconstruction: Tensor, predicted: Tensor, found: Prediction) -> Tensor:
    """One row per image: original, reconstruction, teacher-forced prediction, where the top-1 code
    was right (light) and the cross-entropy per position (bright is surprising).

    All images (B, 3, H, W) in [-1, 1]; returns one grid (3, rows, columns) in [-1, 1].
    """
    size = images.shape[-2:]
    right = heat_map(found.correct.float(), size, "gray", 0.0, 1.0)
    surprise = heat_map(found.cross_entropy, size, "magma", 0.0, float(found.cross_entropy.max()))
    columns = [images, reconstruction, predicted, right.to(images), surprise.to(images)]
    rows = torch.stack([x.float() for x in columns], dim=1).flatten(0, 1)
    return image_grid(rows, columns=len(columns))


def heat_map(values: Tensor, size: Sequence[int], name: str, low: float, high: float) -> Tensor:
    """Values (B, h, w) in [low, high] as images (B, 3, *size) in [-1, 1] of a colour map."""
    share = ((values.float() - low) / max(high - low, 1e-9)).clamp(0, 1)
    colours = torch.from_numpy(matplotlib.colormaps[name](share.cpu().numpy())[..., :3]).float()
    return F.interpolate(colours.permute(0, 3, 1, 2) * 2 - 1, size=list(size), mode="nearest")
