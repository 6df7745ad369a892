"""How much of the codebook is in use: counts on the device, read only when asked."""

from collections.abc import Callable

import torch
from torch import Tensor


class UsageCounter:
    """Counts of codes seen since the last reset; updating never waits for the device."""

    def __init__(self, num_codes: int, device: torch.device | str = "cpu") -> None:
        self.counts = torch.zeros(num_codes, dtype=torch.int64, device=device)

    @torch.no_grad()
    def update(self, codes: Tensor) -> None:
        """Add codes of any shape."""
        flat = codes.flatten()
        # Not `bincount`: on CUDA it reads its input's maximum back, a wait in every step.
        self.counts.index_add_(0, flat, torch.ones_like(flat))

    def usage(self) -> float:
        """Share of the codes seen at least once, in [0, 1]."""
        return (self.counts > 0).double().mean().item()

    def perplexity(self) -> float:
        """exp of the entropy of the code frequencies, in [1, K]; 1 when nothing was counted."""
        share = self.counts.double() / self.counts.sum().clamp_min(1)
        return torch.special.entr(share).sum().exp().item()

    def summed(self, total: Callable[[Tensor], Tensor]) -> "UsageCounter":
        """A counter with the counts of all processes; `total` sums a tensor over them."""
        whole = UsageCounter(len(self.counts), self.counts.device)
        whole.counts += total(self.counts)
        return whole

    def reset(self) -> None:
        """Start counting afresh."""
        self.counts.zero_()

    def state(self) -> dict[str, Tensor]:
        """The tensors a resumed run must restore, in place."""
        return {"counts": self.counts}
