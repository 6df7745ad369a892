"""Exact nearest-code search (Eq. 1) at the speed of an fp32 matrix product.

The product proposes, and every row whose margin is within the product's rounding bound is decided
again in float64, so that codes do not depend on chunking, batch size or kernel.
"""

import torch
from torch import Tensor

_CHUNK = 2**24  # elements of the (rows, codes) score matrix held at once


@torch.no_grad()
def nearest_code(rows: Tensor, codebook: Tensor) -> Tensor:
    """Index of the nearest row of `codebook` (K, C) by L2 for each of `rows` (N, C); int64 (N,).

    Equal distances go to the lowest index. Works in fp32 (autocast is off inside), never holds
    the whole (N, K) matrix, and agrees with a float64 search. Not finite rows get some code.
    """
    if rows.shape[1] != codebook.shape[1]:
        raise ValueError(f"expected latents of width {codebook.shape[1]}, found {rows.shape[1]}")
    with torch.autocast(rows.device.type, enabled=False):
        rows, codebook = rows.float(), codebook.float()
        size = max(1, _CHUNK // len(codebook))
        return torch.cat([_nearest_in_chunk(chunk, codebook) for chunk in rows.split(size)])


def _nearest_in_chunk(rows: Tensor, codebook: Tensor) -> Tensor:
    # |z - e|^2 = |z|^2 - 2 z.e + |e|^2, and |z|^2 does not change which code is nearest.
    norms = codebook.square().sum(1)
    scores = torch.addmm(norms, rows, codebook.t(), alpha=-2)
    best, codes = scores.min(1)
    largest = norms.max().sqrt()
    bound = _relative_bound(rows) * largest * (largest + 2 * rows.norm(dim=1))
    limit = best + 2 * bound
    # The runner-up tells whether a row is sure: one quick pass, where marking and counting all that
    # are close is a slow one.
    scores.scatter_(1, codes[:, None], torch.inf)
    unsure = (scores.amin(1) <= limit).nonzero().flatten()
    if len(unsure):
        close = scores[unsure] <= limit[unsure, None]
        close.scatter_(1, codes[unsure, None], True)
        codes[unsure] = _decide(rows[unsure], codebook, close)
    return codes


def _relative_bound(rows: Tensor) -> float:
    """Rounding error of one score relative to the size of its terms."""
    accumulation = (rows.shape[1] + 8) * 2.0**-23
    # Other settings than "highest" let matrix products round their inputs: to TF32, to bfloat16.
    rounding = {"highest": 0.0, "high": 2.0**-9, "medium": 2.0**-7}
    return accumulation + rounding[torch.get_float32_matmul_precision()]


def _decide(rows: Tensor, codebook: Tensor, close: Tensor) -> Tensor:
    """Nearest among the candidates marked in `close` (N, K), by float64 differences."""
    row, code = close.nonzero(as_tuple=True)
    size = max(1, _CHUNK // rows.shape[1])
    distance = torch.cat(
        [
            (rows[r].double() - codebook[c].double()).square().sum(1)
            for r, c in zip(row.split(size), code.split(size))
        ]
    )
    least = torch.full((len(rows),), torch.inf, dtype=torch.float64, device=rows.device)
    least.scatter_reduce_(0, row, distance, "amin")
    tied = distance == least[row]
    lowest = torch.full((len(rows),), len(codebook), dtype=torch.int64, device=rows.device)
    return lowest.scatter_reduce_(0, row[tied], code[tied], "amin")
