"""Drawing codes by iterative refinement (NAR; Sec. 3.1, MaskGIT's): a dozen passes over the grid.

Each pass draws every masked position and fixes those the model is surest of, or those that come
next in a given order (`halton`). Codes are drawn where a position is masked, and nowhere else. D9:
12 steps, cosine schedule, choice temperature 4.5. On CUDA the passes are one captured graph, but
for the first, which samples of one class share.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from semvq.generators.noise import NAR_CHOICES, NAR_CODES, Noise, Stream
from semvq.generators.sampling import Draw, draw, progress_of, ranks
from semvq.kernels.capture import Captured

# (codes (B, N), mask_code where masked; classes (B,) or None; progress) -> (B, N, K or more)
Logits = Callable[[Tensor, Tensor | None, float], Tensor]
# (scores (B, m, K), drawn codes and their positions (B, m), step, Gumbel noise (B, m)) -> (B, m)
Sureness = Callable[[Tensor, Tensor, Tensor, int, Tensor], Tensor]
CHOICE_TEMPERATURE = 4.5  # D9


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


def by_confidence(choice_temperature: float, steps: int) -> Sureness:
    """MaskGIT's: log p + choice_temperature * (1 - t/T) * Gumbel.

    p is the model's probability before temperature and truncation. ValueError below 0.
    """
    if choice_temperature < 0:
        raise ValueError(f"choice_temperature: expected 0 or more, found {choice_temperature}")

    def sureness(
        scores: Tensor, drawn: Tensor, positions: Tensor, step: int, chance: Tensor
    ) -> Tensor:
        log_p = scores.log_softmax(-1).gather(-1, drawn.unsqueeze(-1)).squeeze(-1)
        return log_p + choice_temperature * (1 - step / steps) * chance

    return sureness


def in_order(order: Sequence[int], device: torch.device) -> Sureness:
    """Positions are fixed as a permutation of them says, e.g. `halton.halton_order`."""
    rank = torch.tensor(order, device=device).argsort().float()
    return lambda scores, drawn, positions, step, chance: -rank[positions]


class NARSampler:
    """Refines the codes of `num` samples at a time.

    `num_masked` counts the positions to draw of each sample, which known codes may lessen. The
    number fixed in each step is the schedule's share of it.
    """

    def __init__(
        self,
        logits: Logits,
        mask_code: int,
        num_masked: Sequence[int],
        draw: Draw,
        sureness: Sureness,
        *,
        steps: int = 12,
        schedule: Callable[[float], float] = cosine,
    ) -> None:
        self.logits, self.mask_code, self.steps = logits, mask_code, steps
        self.draw, self.sureness = draw, sureness
        self.plans = [mask_counts(n, steps, schedule) for n in num_masked]
        # masked positions before each step, of the sample that has the most
        most = max(num_masked)
        self.counts = [most, *(max(p[i] for p in self.plans) for i in range(steps - 1))]
        self.rest: Captured | None = None

    def __call__(self, noise: Noise, known: Tensor, classes: Tensor | None) -> Tensor:
        """Codes int64 (num, N) from `known` (num or 1, N): codes to keep, -1 where to draw."""
        num = len(self.plans)
        row = torch.where(known >= 0, known, self.mask_code)
        streams = noise.stream(NAR_CODES), noise.stream(NAR_CHOICES)
        codes, masked = (t.expand(num, -1) for t in (row, row == self.mask_code))
        plan = torch.tensor(self.plans, device=row.device)
        if not self.counts[0]:
            return codes.clone()
        if num > 1:
            scores = self._first(row, num, classes)
            first = self._noise(range(1, 2), codes.shape[1], *streams)[1]
            codes, masked = self._fix(1, scores, codes, masked, plan, *first)
        values = [codes, masked, plan, *streams[0], *streams[1]]
        if classes is not None:
            values.append(classes)
        if self.rest is None:
            self.rest = Captured(self._rest, tuple(v.clone() for v in values), ())
        return self.rest(*values).clone()

    def _first(self, row: Tensor, num: int, classes: Tensor | None) -> Tensor:
        """Scores of the first step, where samples differ by their class alone: a pass for each."""
        progress = progress_of(0, self.steps)
        if len(row) > 1:
            return self.logits(row, classes, progress)
        if classes is None:
            return self.logits(row, None, progress).expand(num, -1, -1)
        distinct, which = classes.unique(return_inverse=True)
        return self.logits(row.expand(len(distinct), -1), distinct, progress)[which]

    def _rest(
        self, codes: Tensor, masked: Tensor, plan: Tensor,
        a: Tensor, b: Tensor, c: Tensor, d: Tensor, classes: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        # a sample alone shares its first step with nobody
        steps = range(1 if len(codes) == 1 else 2, 1 + sum(n > 0 for n in self.counts))
        noise = self._noise(steps, codes.shape[1], Stream(a, b), Stream(c, d))
        for step in steps:
            scores = self.logits(codes, classes, progress_of(step - 1, self.steps))
            codes, masked = self._fix(step, scores, codes, masked, plan, *noise[step])
        return codes

    def _noise(
        self, steps: range, length: int, code_noise: Stream, choice_noise: Stream
    ) -> dict[int, tuple[Stream, Tensor]]:
        """Of each step at every position (num, N): where the codes' noise begins; the choices'.

        All at once: made in every step, a hundred small kernels.
        """
        counters = torch.arange(max(steps.stop, length), device=code_noise.first.device)
        times, places = counters[steps.start : steps.stop], counters[:length]
        first, second = (word.unbind(1) for word in code_noise.at(times).at(places))
        chances = choice_noise.at(times).at(places).gumbel().unbind(1)
        return {s: (Stream(a, b), c) for s, a, b, c in zip(steps, first, second, chances)}

    def _fix(
        self, step: int, scores: Tensor, codes: Tensor, masked: Tensor, plan: Tensor,
        code_noise: Stream, chance: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Draw the masked positions, keep the surest: codes and mask (num, N) after a step."""
        # the masked positions of each sample, in their order; a few others fill up short rows
        order = masked.byte().sort(dim=1, descending=True, stable=True).indices
        positions = order[:, : self.counts[step - 1]]
        open_here, codes_here = masked.gather(1, positions), codes.gather(1, positions)
        wanted = positions[..., None].expand(-1, -1, self.mask_code)
        scores = scores[..., : self.mask_code].gather(1, wanted).float()
        here = Stream(*(word.gather(1, positions) for word in code_noise))
        gumbel = here.gumbel_of(self.mask_code)
        drawn = torch.where(open_here, self.draw(scores, gumbel), codes_here)
        sure = self.sureness(scores, drawn, positions, step, chance.gather(1, positions))
        stays = ranks(sure.masked_fill(~open_here, torch.inf)) < plan[:, step - 1 : step]
        fixed = torch.where(stays, self.mask_code, drawn)
        return codes.scatter(1, positions, fixed), masked.scatter(1, positions, stays)


def sample_nar(
    logits: Callable[[Tensor, float], Tensor],
    length: int,
    mask_code: int,
    noise: Noise,
    *,
    order: Sequence[int] | None = None,
    steps: int = 12,
    schedule: Callable[[float], float] = cosine,
    choice_temperature: float = CHOICE_TEMPERATURE,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    known: Tensor | None = None,
) -> Tensor:
    """Codes int64 (B, length) from any callable, B the number of samples that `noise` is for.

    `logits(codes, progress)` gives (B, length, K or more) for codes where `mask_code` (= K) marks
    what is not known yet; logits beyond K are ignored. `order`: see `in_order`; None goes by
    confidence. `known` int64 (B or 1, length): codes that stay, -1 where to draw. Raises
    ValueError for fewer than one step, a negative temperature, or known codes that do not fit.
    """
    device, num = noise.indices.device, len(noise.indices)
    known, num_masked = checked(known, num, length, mask_code, device)
    sureness = (
        by_confidence(choice_temperature, steps) if order is None else in_order(order, device)
    )
    draws = partial(draw, temperature=temperature, top_k=top_k, top_p=top_p)
    sampler = NARSampler(
        lambda codes, _, progress: logits(codes, progress),
        mask_code, num_masked, draws, sureness, steps=steps, schedule=schedule,
    )  # fmt: skip
    return sampler(noise, known.expand(num, -1), None)


def checked(
    known: Tensor | None, num: int, length: int, mask_code: int, device: torch.device
) -> tuple[Tensor, tuple[int, ...]]:
    """`known` as the sampler takes it, with the number of positions to draw of each sample."""
    if known is None:
        return torch.full((1, length), -1, device=device), (length,) * num
    if tuple(known.shape[1:]) != (length,) or len(known) not in (1, num):
        raise ValueError(f"known: expected shape {(num, length)}, found {(*known.shape,)}")
    highest = int(known.max())
    if highest >= mask_code:
        raise ValueError(f"known: expected codes below {mask_code}, found {highest}")
    counts = (known < 0).sum(1).tolist()
    return known, tuple(counts * num if len(known) == 1 else counts)
