"""Drawing codes one position after the other (AR, Sec. 3.1), at one launch per position.

Everything is allocated once: keys and values, the drawn codes, the state of the noise. On CUDA the
step, with noise, guidance and draw inside, is one captured graph, if its kernels serve (see
`kernels.sampling`: not under autocast).
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from semvq.generators.guidance import Schedule, led
from semvq.generators.noise import Stream
from semvq.generators.sampling import Draw, progress_of
from semvq.kernels import sampling as kernels
from semvq.kernels.capture import Captured

if TYPE_CHECKING:
    from semvq.generators.ar import ARTransformer


class ARSampler:
    """Draws the codes of `num` samples at a time; `schedule` None is for no guidance.

    `draw(logits, gumbel)` turns (num, K) of both into codes (num,).
    """

    def __init__(
        self, model: "ARTransformer", num: int, draw: Draw, schedule: Schedule | None
    ) -> None:
        self.model, self.draw, self.schedule = model, draw, schedule
        self.length, device = model.config.length, model.device
        self.cache = model.new_cache(num if schedule is None else 2 * num)
        self.codes = torch.zeros(num, self.length, dtype=torch.int64, device=device)
        self.previous = torch.zeros(num, dtype=torch.int64, device=device)
        # of all positions: two dozen small kernels once, not at every step
        self.noise = Stream(torch.zeros_like(self.codes), torch.zeros_like(self.codes))
        self.places = torch.arange(self.length, device=device)
        progress = [progress_of(i, self.length) for i in range(self.length)]
        scales = [] if schedule is None else [schedule(p) for p in progress]
        self.scales = torch.tensor(scales, device=device)
        moved = (self.cache.position, self.previous, self.codes)
        self.step: Callable[[], None] = self._next
        if kernels.serve(self.cache.memory):  # the plain step is not free of synchronisation
            self.step = Captured(self._next, (), moved)

    def __call__(self, noise: Stream, classes: Tensor | None) -> Tensor:
        """Codes int64 (num, length); classes (2 * num,) with guidance, its other half last."""
        for own, words in zip(self.noise, noise.at(self.places)):
            own.copy_(words)
        self.cache.position.zero_()
        # the first position is another step: it takes the class, and there is one of it
        self._draw_from(self.model.step(None, self.cache, classes))
        for _ in range(1, self.length):
            self.step()
        return self.codes.clone()

    def _next(self) -> None:
        previous = self.previous
        if self.schedule is not None:
            previous = previous.repeat(2)
        self._draw_from(self.model.step(previous, self.cache))

    def _draw_from(self, logits: Tensor) -> None:
        """Draw the position before the cache's from its logits (num or 2 * num, K)."""
        position = self.cache.position - 1
        logits = logits.float()
        if self.schedule is not None:
            logits = led(logits, self.scales[position])
        here = Stream(*(word.index_select(1, position) for word in self.noise))
        gumbel = here.gumbel_of(self.model.config.num_codes).squeeze(1)
        drawn = self.draw(logits, gumbel)
        self.previous.copy_(drawn)
        self.codes.index_copy_(1, position, drawn[:, None])
