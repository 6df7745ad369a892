"""Exact nearest-code search (Eq. 1) at the speed of a matrix product.

A product proposes, and every row whose margin is within the product's rounding bound is decided
again in float64, so that codes do not depend on chunking, batch size or kernel. On CUDA a Triton
kernel proposes, from products of half precision; elsewhere, and for the few rows that it leaves
open, it is an fp32 product in chunks.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from semvq.kernels.trial import runs_on

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
        if len(rows) and kernel_serves(rows):
            codes, second, unsure = _propose_by_kernel(problem)
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


def kernel_serves(rows: Tensor) -> bool:
    """Whether the kernel takes these rows."""
    return rows.is_cuda and runs_on(rows.device, "the search for the nearest code", _try)


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


def _propose_by_kernel(problem: _Problem) -> tuple[Tensor, Tensor, Tensor]:
    """Likely codes (N,), the next likely (N,), and how many others may be nearer, (N,).

    That is 0, 1 (the next likely one) or 2 (any). Scores are halves of those of the product.
    """
    rows, codes = problem.rows.half(), problem.codes.half()
    window = 2 * _half_bound(problem, rows, codes)
    # Only numbers below: the window of a row with others is infinite or NaN, so that it stays open.
    halves = (problem.norms / 2).nan_to_num_()
    scores, places = best_three(
        rows.nan_to_num_(0, 0, 0), codes.nan_to_num_(0, 0, 0), halves, window
    )
    # Where nothing is known, such as infinity minus infinity, nothing is sure.
    close = ~(scores[1:] > scores[0] + window)
    return places[0], places[1], torch.where(problem.finite, close.sum(0), 0)


def _half_bound(problem: _Problem, rows: Tensor, codes: Tensor) -> Tensor:
    """Error (N,) of |e|^2 / 2 - z.e from products of `rows` and `codes`, those rounded to fp16.

    |z.e - z'.e'| <= |z - z'| |e| + |z'| |e - e'|, where the differences are known, and are several
    times smaller than the format allows. Tensor cores cut sums off where others round, and may
    keep a bit less: hence four times the bound of fp32.
    """
    lost = (problem.rows - rows).norm(dim=1)
    lost_of_codes = (problem.codes - codes).norm(dim=1).max()
    accumulation = (rows.shape[1] + 8) * 2.0**-21
    largest, sizes = problem.largest, problem.sizes
    summing = accumulation * largest * (largest / 2 + sizes)
    return lost * largest + (sizes + lost) * lost_of_codes + summing + problem.blur


def best_three(
    rows: Tensor, codes: Tensor, halves: Tensor, windows: Tensor
) -> tuple[Tensor, Tensor]:
    """See the kernel's; Triton is imported when it first runs."""
    from semvq.kernels import nearest as kernels

    return kernels.best_three(rows, codes, halves, windows)


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


def _try(device: torch.device) -> None:
    """ArithmeticError where the kernel's scores of a small problem are not plain PyTorch's."""
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(307, 20, generator=generator, dtype=torch.float32).to(device).half()
    rows, codes = numbers[:7], numbers[7:]
    halves = codes.float().square().sum(1) / 2
    scores = halves.double() - rows.double() @ codes.double().t()
    expected = scores.topk(3, 1, largest=False)
    found, places = best_three(rows, codes, halves, torch.full_like(halves[:7], torch.inf))
    error = float((found - expected.values.t()).abs().max())
    if not (error < 1e-4 and torch.equal(places, expected.indices.t()[:2])):
        raise ArithmeticError(f"scores off by {error:g}")
