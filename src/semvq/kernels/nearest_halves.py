"""The half of `tokenizer.nearest` that is for CUDA: proposals from products of half precision."""

import torch
from torch import Tensor

from semvq.kernels.trial import runs_on


def serve(rows: Tensor) -> bool:
    """Whether the kernel takes these rows."""
    return rows.is_cuda and runs_on(rows.device, "the search for the nearest code", _try)


def propose(
    rows: Tensor,
    codes: Tensor,
    norms: Tensor,
    sizes: Tensor,
    largest: Tensor,
    blur: Tensor,
    finite: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Likely codes (N,), the next likely (N,), and how many others may be nearer, (N,).

    See `tokenizer.nearest` for the arguments, rows and codes scaled into the range of fp16.

    That is 0, 1 (the next likely one) or 2 (any). Scores are halves of those of the product.
    """
    window = 2 * (half_bound(rows, codes, sizes, largest) + blur)
    rows, codes = rows.half(), codes.half()
    # Only numbers below: the window of a row with others is infinite or NaN, so that it stays open.
    halves = (norms / 2).nan_to_num_()
    scores, places = best_three(
        rows.nan_to_num_(0, 0, 0), codes.nan_to_num_(0, 0, 0), halves, window
    )
    # Where nothing is known, such as infinity minus infinity, nothing is sure.
    close = ~(scores[1:] > scores[0] + window)
    return places[0], places[1], torch.where(finite, close.sum(0), 0)


def half_bound(rows: Tensor, codes: Tensor, sizes: Tensor, largest: Tensor) -> Tensor:
    """Error (N,) of |e|^2 / 2 - z.e from products of rows and codes that are rounded to fp16.

    |z.e - z'.e'| <= |z - z'| |e| + |z'| |e - e'|, where the differences are known, and are several
    times smaller than the format allows. Tensor cores cut sums off where others round, and may
    keep a bit less: hence four times the bound of fp32.
    """
    lost = (rows - rows.half()).norm(dim=1)
    lost_of_codes = (codes - codes.half()).norm(dim=1).max()
    accumulation = (rows.shape[1] + 8) * 2.0**-21
    summing = accumulation * largest * (largest / 2 + sizes)
    return lost * largest + (sizes + lost) * lost_of_codes + summing


def best_three(
    rows: Tensor, codes: Tensor, halves: Tensor, windows: Tensor
) -> tuple[Tensor, Tensor]:
    """See the kernel's; Triton is imported when it first runs."""
    from semvq.kernels import nearest as kernels

    return kernels.best_three(rows, codes, halves, windows)


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
