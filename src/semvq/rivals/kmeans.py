"""VQFR's codes (Gu et al. 2022; Table 5, "+K-means"): re-estimated by k-means now and then.

Between two estimates the codebook learns as ours does, without the usage entropy. VQFR estimates
every 2,000 steps until step 30,000.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from semvq.tokenizer.nearest import nearest_code
from semvq.tokenizer.quantize import Quantized, VectorQuantizer, VectorQuantizerConfig, flatten

_CHUNK = 2**24  # memberships (rows x codes) held at once: 64 MiB


@dataclass(frozen=True)
class KMeansQuantizerConfig(VectorQuantizerConfig):
    """`iterations` of Lloyd's on the last `kept` latents, `every` so many steps up to `until`.

    Steps are the optimiser's, however many parts a batch is worked off in. `kept` is of each
    process.
    """

    entropy_weight: float = 0.0
    every: int = 2000
    until: int = 30_000
    kept: int = 65_536
    iterations: int = 10

    def build(self) -> "KMeansQuantizer":
        """The module these settings describe; ValueError for those that describe none."""
        return KMeansQuantizer(self)


class KMeansQuantizer(VectorQuantizer):
    """A plain codebook (K, C) that is re-estimated from recent latents.

    A step begins where the codebook has no gradient waiting, as the loop clears it after each. So
    an estimate falls between two steps, not between the parts of one, and the codebook must be one
    that a loss moves: ValueError where both of its weights are 0.
    """

    config: KMeansQuantizerConfig

    def __init__(self, config: KMeansQuantizerConfig) -> None:
        super().__init__(config)
        for name in ("every", "kept", "iterations"):
            if getattr(config, name) < 1:
                raise ValueError(f"expected {name} of at least 1, found {getattr(config, name)}")
        if not {"codebook", "entropy"} & self.loss_weights.keys():
            raise ValueError(
                "expected a codebook that learns between estimates, found codebook_weight and "
                "entropy_weight of 0"
            )
        self.rows: Tensor
        self.counts: Tensor
        # no part of the tokenizer: what training needs, and a checkpoint keeps (see `state`)
        self.register_buffer("rows", torch.zeros(config.kept, config.code_dim), persistent=False)
        self.register_buffer("counts", torch.zeros(2, dtype=torch.int64), persistent=False)
        self._known: list[int] | None = None  # what `counts` holds, known without asking a GPU

    def forward(self, latents: Tensor) -> Quantized:
        """See `VectorQuantizer`; in training it takes note of the latents, and is re-estimated."""
        if self.training and self._counted()[0] < self.config.until:
            begins = self.codebook.grad is None
            self._take(flatten(latents.detach()), int(begins))
            if begins and self._counted()[0] % self.config.every == 0:
                self.estimate()
        return super().forward(latents)

    def state(self) -> dict[str, Tensor]:
        """This process's latents (`kept`, C), and its steps and rows seen, int64 (2,).

        They may be written to, by a resumed run, until the next training step.
        """
        self._known = None
        return {"kmeans_rows": self.rows, "kmeans_counts": self.counts}

    def _counted(self) -> list[int]:
        """Steps, and rows seen; the device is asked once after `state`."""
        if self._known is None:
            self._known = self.counts.tolist()
        return self._known

    def _take(self, rows: Tensor, steps: int = 1) -> None:
        """Write rows (n, C) over the oldest ones, and count them and so many steps."""
        rows, known = rows[: len(self.rows)], self._counted()
        places = torch.arange(len(rows), device=rows.device) + known[1]
        self.rows[places % len(self.rows)] = rows
        for index, more in enumerate((steps, len(rows))):
            self.counts[index].add_(more)
            known[index] += more

    @torch.no_grad()
    def estimate(self) -> None:
        """Lloyd's iterations from the codebook of now, on the latents of all processes.

        Rows that are not finite have no part in it: the loop skips the step that they came in, but
        only after the codebook saw them. Without any other row the codebook stays as it is. The
        result is the same in every process.
        """
        with torch.autocast(self.rows.device.type, enabled=False):
            rows = self.rows[: self._counted()[1]]
            rows = rows[rows.isfinite().all(1)]
            centres, spread = self.codebook.detach().clone(), self._spread(rows)
            for _ in range(self.config.iterations):
                found = sums_of_members(rows, nearest_code(rows, centres), len(centres))
                sums, counts = map(self.all_mean, found)
                means = sums / counts.clamp_min(1e-9)[:, None]
                centres = torch.where(counts[:, None] > 0, means, centres)
                centres = beside_the_fullest(centres, counts, spread)
            self.codebook.copy_(centres)

    def _spread(self, rows: Tensor) -> Tensor:
        """Standard deviation (C,) over the rows (n, C) of all processes; 0 where there is none."""
        num = self.all_mean(torch.full((1,), float(len(rows)), device=rows.device)).clamp_min(1e-9)
        centre = self.all_mean(rows.sum(0)) / num
        return (self.all_mean((rows - centre).square().sum(0)) / num).sqrt()


def sums_of_members(rows: Tensor, codes: Tensor, num_codes: int) -> tuple[Tensor, Tensor]:
    """Sum (K, C) and number (K,) of the rows (N, C) that have each code; codes are int64 (N,).

    Products of matrices, in chunks, and not scattered: the same on every run of a GPU.
    """
    sums, counts = rows.new_zeros(num_codes, rows.shape[1]), rows.new_zeros(num_codes)
    size = max(1, _CHUNK // num_codes)
    for part, found in zip(rows.split(size), codes.split(size)):
        members = part.new_zeros(len(part), num_codes).scatter_(1, found[:, None], 1)
        sums.addmm_(members.t(), part)
        counts += members.sum(0)
    return sums, counts


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
