"""Drawing codes from a transformer: pure functions over callables that return logits.

AR: one position after the other (VQGAN). NAR: iterative refinement, twelve passes that each fix the
codes the model is surest of (MaskGIT), or those that come next in a given order (`halton`). The
callables are also told the progress, 0 at the first step and 1 at the last. Defaults are D9's:
temperature 1, nothing cut off, no guidance; NAR 12 steps, cosine schedule, choice temperature 4.5.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from semvq.generators.noise import AR_CODES, NAR_CHOICES, NAR_CODES, Noise

# (scores (B, N, K), drawn codes (B, N), number of the step) -> (B or 1, N): the highest are fixed
Sureness = Callable[[Tensor, Tensor, int], Tensor]


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


def sample_ar(
    step: Callable[[Tensor | None, float], Tensor],
    length: int,
    noise: Noise,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Tensor:
    """Codes int64 (B, length), B the number of samples that `noise` is for.

    `step(previous, progress)` gives logits (B, K) of the next position; `previous` is None at
    first, then the codes (B,) just drawn: the callable keeps the context (a cache).
    """
    drawn: list[Tensor] = []
    for position in range(length):
        logits = step(drawn[-1] if drawn else None, progress_of(position, length)).float()
        every_code = torch.arange(logits.shape[-1], device=logits.device)
        gumbel = noise.gumbel(AR_CODES, position, every_code)
        drawn.append(draw(logits, gumbel, temperature, top_k, top_p))
    return torch.stack(drawn, dim=1)


def cosine(progress: float) -> float:
    """Share of positions still masked after a `progress` in [0, 1] of the steps (MaskGIT)."""
    return math.cos(0.5 * math.pi * progress)


def mask_counts(
    length: int, steps: int, schedule: Callable[[float], float] = cosine
) -> tuple[int, ...]:
    """Number of masked positions after each of `steps` steps; the last is 0.

    The schedule's share of `length`, floored, but every step fixes at least one position and leaves
    at least one for each step to come. With more steps than positions the surplus steps are 0.
    """
    if steps < 1:
        raise ValueError(f"steps: expected at least 1, found {steps}")
    counts: list[int] = []
    left = length
    for step in range(1, steps + 1):
        # A product that is whole but for rounding must not be floored to the number below.
        planned = math.floor(length * schedule(step / steps) + 1e-9)
        left = max(0, min(left - 1, max(steps - step, planned)))
        counts.append(left)
    counts[-1] = 0
    return tuple(counts)


def sample_nar(
    logits: Callable[[Tensor, float], Tensor],
    length: int,
    mask_code: int,
    noise: Noise,
    *,
    steps: int = 12,
    schedule: Callable[[float], float] = cosine,
    choice_temperature: float = 4.5,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    known: Tensor | None = None,
) -> Tensor:
    """Codes int64 (B, length), B the number of samples that `noise` is for.

    Each step keeps the surest codes by log p + choice_temperature * (1 - t/T) * Gumbel, p being
    the model's probability before temperature and truncation; the rest as `_refine` says. Raises
    ValueError for fewer than one step, a negative temperature, or known codes that do not fit.
    """
    if choice_temperature < 0:
        raise ValueError(f"choice_temperature: expected 0 or more, found {choice_temperature}")
    positions = torch.arange(length, device=noise.indices.device)

    def sureness(scores: Tensor, drawn: Tensor, step: int) -> Tensor:
        log_p = scores.log_softmax(-1).gather(-1, drawn.unsqueeze(-1)).squeeze(-1)
        chance = (
            choice_temperature * (1 - step / steps) * noise.gumbel(NAR_CHOICES, step, positions)
        )
        return log_p + chance

    draws = partial(draw, temperature=temperature, top_k=top_k, top_p=top_p)
    return _refine(logits, length, mask_code, noise, sureness, draws, steps, schedule, known)


def sample_nar_in_order(
    logits: Callable[[Tensor, float], Tensor],
    order: Sequence[int],
    mask_code: int,
    noise: Noise,
    *,
    steps: int = 12,
    schedule: Callable[[float], float] = cosine,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    known: Tensor | None = None,
) -> Tensor:
    """Codes int64 (B, length): as `sample_nar`, but positions are fixed in the given order.

    `order` is a permutation of the positions, e.g. `halton.halton_order`; those in `known` are
    passed over. The number fixed by each step is the schedule's, as there.
    """
    length = len(order)
    rank = torch.tensor(order, device=noise.indices.device).argsort()
    draws = partial(draw, temperature=temperature, top_k=top_k, top_p=top_p)
    return _refine(
        logits, length, mask_code, noise, lambda *_: -rank.float(), draws, steps, schedule, known
    )


def _refine(
    logits: Callable[[Tensor, float], Tensor],
    length: int,
    mask_code: int,
    noise: Noise,
    sureness: Sureness,
    draws: Callable[[Tensor, Tensor], Tensor],
    steps: int,
    schedule: Callable[[float], float],
    known: Tensor | None,
) -> Tensor:
    """Start all masked; each step draws every masked position and keeps those highest in sureness.

    `logits(codes, progress)` gives (B, length, K or more) for codes where `mask_code` (= K) marks
    what is not known yet; logits beyond K are ignored. `known` int64 (B or 1, length): codes that
    stay, -1 where to draw.
    """
    num, device = len(noise.indices), noise.indices.device
    codes = torch.full((num, length), mask_code, device=device)
    if known is not None:
        codes = torch.where(known >= 0, _checked(known, codes), codes)
    masked = codes == mask_code
    num_masked = [length] * num if known is None else masked.sum(1).tolist()
    plans = [mask_counts(n, steps, schedule) for n in num_masked]
    plan = torch.tensor(plans, device=device)
    positions = torch.arange(length, device=device)
    every_code = torch.arange(mask_code, device=device)
    for step in range(1, steps + 1):
        if not any(num_masked):
            break
        scores = logits(codes, progress_of(step - 1, steps))[..., :mask_code].float()
        gumbel = noise.gumbel(NAR_CODES, step, positions[:, None], every_code)
        drawn = torch.where(masked, draws(scores, gumbel), codes)
        released = sureness(scores, drawn, step).masked_fill(~masked, torch.inf)
        masked = ranks(released) < plan[:, step - 1 : step]
        codes = torch.where(masked, mask_code, drawn)
        num_masked = [p[step - 1] for p in plans]
    return codes


def _checked(known: Tensor, codes: Tensor) -> Tensor:
    """`known`, if it fits the all-masked `codes` (B, length)."""
    if known.shape[1:] != codes.shape[1:] or len(known) not in (1, len(codes)):
        raise ValueError(f"known: expected shape {(*codes.shape,)}, found {(*known.shape,)}")
    mask_code, highest = int(codes[0, 0]), int(known.max())
    if highest >= mask_code:
        raise ValueError(f"known: expected codes below {mask_code}, found {highest}")
    return known


def ranks(values: Tensor) -> Tensor:
    """Rank of each value in its row, (..., N) to int64 (..., N); the smallest has rank 0."""
    return values.argsort(dim=-1, stable=True).argsort(dim=-1)
