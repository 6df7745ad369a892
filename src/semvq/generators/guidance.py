"""Classifier-free guidance, and how its scale runs over the sampling: pure functions.

Progress is 0 at the first step or position and 1 at the last. MaskGIT-type samplers ramp the scale
up from 1 (no guidance): early steps keep the variety, late ones gain the fidelity (Muse, Chang et
al. 2023; the cosine ramp as in MDT, Gao et al. 2023, at power 1).
"""

import math
from collections.abc import Callable

from torch import Tensor

Schedule = Callable[[float], float]  # progress in [0, 1] -> scale


def constant(scale: float) -> Schedule:
    """The same scale throughout."""
    return lambda progress: scale


def linear(scale: float) -> Schedule:
    """From 1 up (or down) to `scale` in equal steps."""
    return lambda progress: 1 + (scale - 1) * progress


def cosine_ramp(scale: float) -> Schedule:
    """From 1 to `scale` along half a cosine: slow at both ends."""
    return lambda progress: 1 + (scale - 1) * (1 - math.cos(math.pi * progress)) / 2


SCHEDULES = {"constant": constant, "linear": linear, "cosine": cosine_ramp}


def named_schedule(name: str, scale: float) -> Schedule:
    """The schedule of that name; ValueError for an unknown one, or a ramp that ends where it began.

    Names: constant, linear, cosine.
    """
    if name not in SCHEDULES:
        names = ", ".join(SCHEDULES)
        raise ValueError(f"guidance_schedule: expected one of {names}; found '{name}'")
    if name != "constant" and scale == 1:
        raise ValueError(
            f"guidance_schedule: expected a guidance other than 1 for '{name}' to lead to, "
            "found 1; give a guidance, e.g. 3"
        )
    return SCHEDULES[name](scale)


def led(logits: Tensor, scale: float | Tensor) -> Tensor:
    """Logits unconditional + scale * (conditional - unconditional), (B, ...).

    `logits` (2B, ...) holds the conditional half first: one pass of twice as many rows reads the
    weights once.
    """
    conditional, unconditional = logits.chunk(2)
    return unconditional + scale * (conditional - unconditional)
