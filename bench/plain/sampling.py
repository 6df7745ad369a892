"""Sampling as one would write it first: what the fast samplers are tested and timed against.

AR runs the whole transformer for every position, without a cache; NAR draws at every position of
every step; guidance is two passes. The noise is the library's, so equal codes are expected. The
transformer is any function from codes (B, N) and classes (B,) to logits: the library's module, or
`transformers`'.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from semvq.generators.base import NO_CLASS, GeneratorConfig
from semvq.generators.guidance import named_schedule
from semvq.generators.noise import AR_CODES, NAR_CHOICES, NAR_CODES, Noise
from semvq.generators.sampling import draw, progress_of, ranks
from semvq.generators.sampling_nar import CHOICE_TEMPERATURE, mask_counts

Logits = Callable[[Tensor, Tensor | None], Tensor]


def guided_logits(
    forward: Logits, codes: Tensor, classes: Tensor | None, scale: float | None
) -> Tensor:
    """Logits led away from no class at `scale`; None is no guidance."""
    logits = forward(codes, classes).float()
    if scale is None:
        return logits
    assert classes is not None
    base = forward(codes, torch.full_like(classes, NO_CLASS)).float()
    return base + scale * (logits - base)


@torch.no_grad()
def plain_ar(
    forward: Logits,
    config: GeneratorConfig,
    noise: Noise,
    classes: Tensor | None = None,
    *,
    guidance: float = 1.0,
    guidance_schedule: str = "constant",
    **truncation: Any,
) -> Tensor:
    """Codes int64 (num, N); `truncation` is `draw`'s options.

    Of the logits, those of the last position are looked at: `forward` may give no others.
    """
    num, device = len(noise.indices), noise.indices.device
    every_code = torch.arange(config.num_codes, device=device)
    codes = torch.zeros(num, config.length, dtype=torch.int64, device=device)
    schedule = named_schedule(guidance_schedule, guidance)
    for i in range(config.length):
        scale = None if guidance == 1 else schedule(progress_of(i, config.length))
        logits = guided_logits(forward, codes[:, : i + 1], classes, scale)[:, -1]
        codes[:, i] = draw(logits, noise.gumbel(AR_CODES, i, every_code), **truncation)
    return codes


@torch.no_grad()
def plain_nar(
    forward: Logits,
    config: GeneratorConfig,
    noise: Noise,
    classes: Tensor | None = None,
    *,
    steps: int = 12,
    choice_temperature: float = CHOICE_TEMPERATURE,
    order: tuple[int, ...] | None = None,
    known: Tensor | None = None,
    guidance: float = 1.0,
    guidance_schedule: str = "constant",
    **truncation: Any,
) -> Tensor:
    """Codes int64 (num, N); `known` int64 (num, N), -1 where to draw; `order` None: confidence."""
    num, device = len(noise.indices), noise.indices.device
    mask_code, length = config.num_codes, config.length
    every_code = torch.arange(mask_code, device=device)
    positions = torch.arange(length, device=device)
    codes = torch.full((num, length), mask_code, device=device)
    if known is not None:
        codes = torch.where(known >= 0, known, codes)
    plans = [mask_counts(int((row == mask_code).sum()), steps) for row in codes]
    schedule = named_schedule(guidance_schedule, guidance)
    for step in range(1, steps + 1):
        masked = codes == mask_code
        if not masked.any():
            break
        scale = None if guidance == 1 else schedule(progress_of(step - 1, steps))
        scores = guided_logits(forward, codes, classes, scale)[..., :mask_code]
        gumbel = noise.gumbel(NAR_CODES, step, positions[:, None], every_code)
        drawn = torch.where(masked, draw(scores, gumbel, **truncation), codes)
        log_p = scores.log_softmax(-1).gather(-1, drawn.unsqueeze(-1)).squeeze(-1)
        chance = noise.gumbel(NAR_CHOICES, step, positions)
        sureness = log_p + choice_temperature * (1 - step / steps) * chance
        if order is not None:
            sureness = -torch.tensor(order, device=device).argsort().float().expand(num, -1)
        left = torch.tensor([plan[step - 1] for plan in plans], device=device)
        masked = ranks(sureness.masked_fill(~masked, torch.inf)) < left[:, None]
        codes = torch.where(masked, mask_code, drawn)
    return codes
