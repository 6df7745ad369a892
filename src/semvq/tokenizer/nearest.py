"""Exact nearest-code search (Eq. 1) at the speed of a matrix product.

A product proposes, and every row whose margin is within the product's rounding bound is decided
again in float64, so that codes do not depend on chunking, batch size or kernel. On CUDA a Triton
kernel proposes, from products of half precision; elsewhere, and for the few rows that it leaves
open, it is an fp32 product in chunks.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from semvq.kernels import nearest_halves as kernels

_CHUNK = 2**24  # scores (rows x codes) held at once; elements of candidates, in float64
_CUDA_CHUNK = 2**27  # scores on a GPU, which small products leave idle: 512 MiB


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
        problem = _problem(rows, codebook)
        if len(rows) and kernels.serve(rows):
            codes, second, unsure = kernels.propose(*problem)
            open_ = _settle_pairs(rows, codebook, codes, second, unsure)
        else:
            codes, unsure = _propose_by_product(problem)
            open_ = unsure.nonzero().flatten()
        bound = _product_bound(problem)
        for part in open_.split(_chunk(codebook, _CHUNK)):
            scores = _scores(problem, problem.rows[part])
            limit = scores.amin(1) + 2 * bound[part]
            row, code = (~(scores > limit[:, None])).nonzero(as_tuple=True)
            codes[part] = _decide(rows[part], codebook, row, code)
        return codes


class _Problem(NamedTuple):
    """Rows (N, C) and codes (K, C) about the codes' mean, in units of the largest entry.

    Shifts and powers of two change no comparison, but keep rounding errors to the spread of the
    codes, and everything in the range of half precision. `norms` (K,) of codes are squared, `sizes`
    (N,) of rows are not; `largest` () is the largest size of a code; `blur` (N,) is what float64
    gets wrong about a squared distance; `finite` (N,) rows have an answer.
    """

    rows: Tensor
    codes: Tensor
    norms: Tensor
    sizes: Tensor
    largest: Tensor
    blur: Tensor
    finite: Tensor


def _problem(rows: Tensor, codebook: Tensor) -> _Problem:
    # clamped, so that the power of two and its inverse are normal numbers
    most = codebook.abs().amax().clamp(2.0**-120, 2.0**120)
    inverse = torch.frexp(most).mantissa / most  # a power of two, exactly
    centre = (codebook * inverse).mean(0)
    moved = torch.addcmul(-centre, rows, inverse)
    codes = torch.addcmul(-centre, codebook, inverse)
    norms = codes.square().sum(1)
    # Not smaller, so that bounds are larger than what is lost to underflow.
    largest = norms.max().sqrt().clamp_min(2.0**-40)
    finite = rows.abs().amax(1).isfinite() & largest.isfinite()
    sizes = moved.norm(dim=1)
    blur = (rows.shape[1] + 8) * 2.0**-52 * (sizes + largest).square()
    return _Problem(moved, codes, norms, sizes, largest, blur, finite)


def _propose_by_product(problem: _Problem) -> tuple[Tensor, Tensor]:
    """Likely codes (N,), and which rows are not sure of theirs (N,)."""
    found = []
    size = _chunk(problem.codes, _CUDA_CHUNK if problem.codes.is_cuda else _CHUNK)
    bound = _product_bound(problem)
    for rows, bounds in zip(problem.rows.split(size), bound.split(size)):
        scores = _scores(problem, rows)
        best, codes = scores.min(1)
        limit = best + 2 * bounds
        # The runner-up tells whether a row is sure: one quick pass, where marking and counting all
        # that are close is a slow one.
        scores.scatter_(1, codes[:, None], torch.inf)
        found.append((codes, ~(scores.amin(1) > limit)))
    codes, unsure = (torch.cat(parts) for parts in zip(*found))
    return codes, unsure & problem.finite


def _chunk(codebook: Tensor, scores: int) -> int:
    """How many rows have this many scores, at least one."""
    return max(1, scores // len(codebook))


def _scores(problem: _Problem, rows: Tensor) -> Tensor:
    # |z - e|^2 = |z|^2 - 2 z.e + |e|^2, and |z|^2 does not change which code is nearest.
    return torch.addmm(problem.norms, rows, problem.codes.t(), alpha=-2)


def _product_bound(problem: _Problem) -> Tensor:
    """Error (N,) of `_scores`, and of float64's own, which is the answer asked for."""
    accumulation = (problem.rows.shape[1] + 8) * 2.0**-23
    # Other settings than "highest" let matrix products round their inputs: to TF32, to bfloat16.
    rounding = {"highest": 0.0, "high": 2.0**-9, "medium": 2.0**-7}
    relative = accumulation + rounding[torch.get_float32_matmul_precision()]
    return relative * problem.largest * (problem.largest + 2 * problem.sizes) + problem.blur


def _settle_pairs(
    rows: Tensor, codebook: Tensor, codes: Tensor, second: Tensor, unsure: Tensor
) -> Tensor:
    """Decide where only two codes may be nearest, in `codes`; which rows (M,) have more."""
    some = unsure.nonzero().flatten()
    many = unsure[some] == 2
    pair = torch.arange(len(some), device=some.device).repeat(2)
    both = torch.cat([codes[some], second[some]])
    codes[some] = _decide(rows[some], codebook, pair, both)
    return some[many]


def _decide(rows: Tensor, codebook: Tensor, row: Tensor, code: Tensor) -> Tensor:
    """Nearest code (N,) of rows (N, C) among candidates, by float64 differences.

    The candidates are `code` (M,) for the rows at `row` (M,), at least one for each.
    """
    size = max(1, _CHUNK // rows.shape[1])
    distance = torch.cat(
        [
            (rows[r].double() - codebook[c].double()).square().sum(1)
            for r, c in zip(row.split(size), code.split(size))
        ]
    )
    least = torch.full((len(rows),), torch.inf, dtype=torch.float64, device=rows.device)
    least.scatter_reduce_(0, row, distance, "amin")
    last = len(codebook) - 1
    lowest = torch.full((len(rows),), last, dtype=torch.int64, device=rows.device)
    tied = torch.where(distance == least[row], code, last)
    return lowest.scatter_reduce_(0, row, tied, "amin")
