"""What drawing codes from logits takes, whatever the transformer: truncation, the draw, progress.

Defaults are D9's: temperature 1, nothing cut off, no guidance.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Draw = Callable[[Tensor, Tensor], Tensor]  # (logits (..., K), Gumbel noise of that shape) -> (...)


def progress_of(step: int, num_steps: int) -> float:
    """Progress at `step` of 0 ... num_steps - 1: from 0 to 1; a single step is at the end."""
    return step / (num_steps - 1) if num_steps > 1 else 1.0


def truncate(logits: Tensor, top_k: int | None = None, top_p: float | None = None) -> Tensor:
    """Set logits (..., K) outside the best codes to -inf; None means that rule is off.

    top_k keeps the k largest; top_p then keeps the fewest of them whose share of the remaining
    mass reaches p, never none. Equal logits rank by lower code. Raises ValueError for
    top_k < 1 or top_p outside (0, 1].
    """
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k: expected at least 1, found {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p: expected a share in (0, 1], found {top_p}")
    if top_k is None and top_p is None:
        return logits
    values, order = logits.sort(dim=-1, descending=True, stable=True)
    if top_k is not None:
        values[..., top_k:] = -torch.inf
    if top_p is not None and top_p < 1:
        mass = values.softmax(-1)
        mass_before = mass.cumsum(-1) - mass
        values = values.masked_fill(mass_before >= top_p, -torch.inf)
    return torch.empty_like(logits).scatter_(-1, order, values)


def draw(
    logits: Tensor,
    gumbel: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Tensor:
    """Codes (...) from logits (..., K) by the Gumbel-max rule; temperature 0 takes the best.

    `gumbel` has the shape of the logits. Raises ValueError for a negative temperature.
    """
    if temperature < 0:
        raise ValueError(f"temperature: expected 0 or more, found {temperature}")
    if temperature == 0:
        return logits.argmax(-1)
    return (truncate(logits / temperature, top_k, top_p) + gumbel).argmax(-1)


def ranks(values: Tensor) -> Tensor:
    """Rank of each value in its row, (..., N) to int64 (..., N); the smallest has rank 0."""
    order = values.argsort(dim=-1, stable=True)
    places = torch.arange(values.shape[-1], device=values.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, places)
