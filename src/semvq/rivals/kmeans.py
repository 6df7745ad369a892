"""VQFR's codes (Gu et al. 2022; Table 5, "+K-means"): re-estimated by k-means now and then.

Between two estimates the codebook learns as ours does, without the usage entropy. VQFR estimates
every 2,000 steps until step 30,000.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from semvq.tokenizer.nearest import nearest_code
from semvq.tokenizer.quantize import Quantized, VectorQuantizer, VectorQuantizerConfig, flatten


@dataclass(frozen=True)
class KMeansQuantizerConfig(VectorQuantizerConfig):
    """`iterations` of Lloyd's on the last `kept` latents, `every` so many steps up to `until`.

    `kept` is of each process.
    """

    entropy_weight: float = 0.0
    every: int = 2000
    until: int = 30_000
    kept: int = 65_536
    iterations: int = 10

    def build(self) -> "KMeansQuantizer":
        """The module these settings describe."""
        return KMeansQuantizer(self)


class KMeansQuantizer(VectorQuantizer):
    """A plain codebook that is re-estimated from recent latents."""

    config: KMeansQuantizerConfig

    def __init__(self, config: KMeansQuantizerConfig) -> None:
        super().__init__(config)
        for name in ("every", "kept", "iterations"):
            if getattr(config, name) < 1:
                raise ValueError(f"expected {name} of at least 1, found {getattr(config, name)}")
        self.rows: Tensor
        # no part of the tokenizer: what training needs, and a checkpoint keeps (see `state`)
        self.register_buffer("rows", torch.zeros(config.kept, config.code_dim), persistent=False)
        # steps, and rows seen; on the CPU, so that looking at them never waits for a GPU
        self.counts = torch.zeros(2, dtype=torch.int64, device="cpu")

    def forward(self, latents: Tensor) -> Quantized:
        """See `VectorQuantizer`; in training it takes note of the latents, and is re-estimated."""
        if self.training and int(self.counts[0]) < self.config.until:
            self._take(flatten(latents.detach()))
            if int(self.counts[0]) % self.config.every == 0:
                self.estimate()
        return super().forward(latents)

    def state(self) -> dict[str, Tensor]:
        """What a resumed run must restore.

        Of several processes it is the writing one's latents, and the others go on from those: an
        estimate is the same unless the run was stopped within the last few steps before it, which
        is how long it takes to see `kept` new ones.
        """
        return {"kmeans_rows": self.rows, "kmeans_counts": self.counts}

    def _take(self, rows: Tensor) -> None:
        """Write rows (n, C) over the oldest ones."""
        rows = rows[: len(self.rows)]
        places = torch.arange(len(rows), device=rows.device) + int(self.counts[1])
        self.rows[places % len(self.rows)] = rows
        self.counts += torch.tensor([1, len(rows)])

    @torch.no_grad()
    def estimate(self) -> None:
        """Lloyd's iterations from the codebook of now, on the latents of all processes.

        Sums are products of matrices, not scattered: the same on every run of a GPU.
        """
        rows = self.rows[: int(self.counts[1])]
        centres = self.codebook.detach().clone()
        spread = self.all_mean(rows.std(0, correction=0))
        for _ in range(self.config.iterations):
            members = F.one_hot(nearest_code(rows, centres), len(centres)).to(rows.dtype)
            sums, counts = self.all_mean(members.t() @ rows), self.all_mean(members.sum(0))
            means = sums / counts.clamp_min(1e-9)[:, None]
            centres = torch.where(counts[:, None] > 0, means, centres)
            centres = beside_the_fullest(centres, counts, spread)
        self.codebook.copy_(centres)


def beside_the_fullest(centres: Tensor, counts: Tensor, spread: Tensor) -> Tensor:
    """Centres (K, C) with those that nobody is near moved beside the ones with most around them.

    A hundredth of `spread` (C,) away, and without chance, so that all processes do the same. No row
    is farther from its centre for it: an empty one has none.
    """
    order = counts.argsort(descending=True, stable=True)
    empty = counts == 0
    rank = empty.cumsum(0) - 1  # which of the empty ones
    hosts = centres[order[rank.clamp_min(0) % len(order)]]
    wave = torch.arange(centres.shape[1], device=centres.device, dtype=centres.dtype)
    moved = hosts + 0.01 * spread * torch.cos(wave * (rank[:, None] + 1) + rank[:, None])
    return torch.where(empty[:, None], moved, centres)
