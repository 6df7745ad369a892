"""Cases for the kernel of the nearest-code search, on any device: test_nearest.py runs them.

As a script they run on the CPU through Triton's interpreter, which has to be chosen before Triton
is imported: `TRITON_INTERPRET=1 python -m tests.nearest_cases` prints what went wrong in each.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from semvq.kernels import nearest_halves as half
from semvq.kernels import trial
from semvq.tokenizer.nearest import nearest_code
from tests.interpreter import print_outcomes

SHAPES = {  # N, K, C
    "one of each": (1, 1, 1),
    "two codes": (5, 2, 3),
    "three codes": (5, 3, 3),
    "odd": (131, 259, 20),
    "one tile": (128, 128, 16),
    "paper's width": (17, 300, 256),
    "in pieces": (33, 150, 300),
    "two parts": (3, 2100, 8),
}


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float32)


def brute_force(rows: Tensor, codebook: Tensor) -> Tensor:
    parts = [
        (part.double()[:, None] - codebook.double()).square().sum(2).argmin(1)
        for part in rows.split(max(1, 2**22 // codebook.numel()))
    ]
    return torch.cat(parts)


def duplicates() -> tuple[Tensor, Tensor]:
    """Each code five times, in several tiles, and rows near them and on them."""
    base = normal(60, 24)
    rows = base.repeat(2, 1) + 0.1 * normal(120, 24, seed=1)
    return torch.cat([rows, base]), base.repeat(5, 1)


def near_ties(offset: float) -> tuple[Tensor, Tensor]:
    """Rows half way between two codes, up to about one rounding, far from the origin."""
    codebook = normal(200, 32) + offset
    pairs = torch.randint(200, (300, 2), generator=torch.Generator().manual_seed(0))
    return codebook[pairs].mean(1) + 1e-7 * normal(300, 32, seed=1), codebook


def in_a_ball() -> tuple[Tensor, Tensor]:
    """Codes closer together than the rounding of half precision, so that all are candidates."""
    return 1 + 1e-5 * normal(40, 16), 1 + 1e-5 * normal(150, 16, seed=1)


def outliers() -> tuple[Tensor, Tensor]:
    """Rows of very different sizes, and a code far away."""
    rows, codebook = normal(40, 16), normal(150, 16, seed=1)
    rows[3:9] *= torch.tensor([1e-6, 1e3, 1e5, 1e12, 1e20, 1e38 / 4])[:, None]
    codebook[7] *= 100
    return rows, codebook


def sized(size: float, of_codes: float) -> tuple[Tensor, Tensor]:
    return size * normal(50, 12), of_codes * normal(170, 12, seed=1)


def shaped(shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    num, num_codes, width = shape
    return normal(num, width), normal(num_codes, width, seed=1)


PROBLEMS: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
    **{name: partial(shaped, shape) for name, shape in SHAPES.items()},
    "duplicates": duplicates,
    "near ties": partial(near_ties, 0.0),
    "near ties, far out": partial(near_ties, 30.0),
    "in a ball": in_a_ball,
    "outliers": outliers,
    "all zero": lambda: (torch.zeros(4, 8), torch.zeros(140, 8)),
    "no rows": lambda: (torch.zeros(0, 8), normal(140, 8)),
    "huge": partial(sized, 1e37, 1e37),
    "tiny": partial(sized, 1e-37, 1e-37),
    "subnormal": partial(sized, 1e-41, 1e-41),
    "large rows": partial(sized, 1e4, 1.0),
    "small rows": partial(sized, 1e-4, 1.0),
}


@contextmanager
def kernel(serves: bool) -> Iterator[None]:
    before = half.serve
    half.serve = lambda rows: serves
    try:
        yield
    finally:
        half.serve = before


def is_the_float64_search(device: str, problem: str) -> None:
    rows, codebook = (t.to(device) for t in PROBLEMS[problem]())
    expected = brute_force(rows, codebook)
    with kernel(True):
        found = nearest_code(rows, codebook)
    assert found.dtype == torch.int64 and torch.equal(found, expected)


def is_the_same_under_autocast(device: str) -> None:
    rows, codebook = (t.to(device) for t in shaped(SHAPES["odd"]))
    with kernel(True), torch.autocast(device, torch.bfloat16):
        assert torch.equal(nearest_code(rows, codebook), brute_force(rows, codebook))


def finds_the_least_three(device: str, shape: tuple[int, int, int]) -> None:
    """All three without a window; with one, those inside it."""
    rows, codes = (t.half().to(device) for t in shaped(shape))
    halves = codes.float().square().sum(1) / 2
    scores = halves.double() - rows.double() @ codes.double().t()
    count = min(3, len(codes))
    expected = scores.topk(count, 1, largest=False)
    limits = torch.full((len(rows),), torch.inf, device=device)
    values, places = half.best_three(rows, codes, halves, limits)
    assert values[count:].eq(torch.inf).all()
    torch.testing.assert_close(values[:count].double(), expected.values.t(), rtol=1e-5, atol=1e-4)
    at = scores.gather(1, places[:count].t())[:, :2]
    torch.testing.assert_close(at, expected.values[:, :2], rtol=1e-5, atol=1e-4)
    window = torch.full_like(limits, 0.5)
    values, places = half.best_three(rows, codes, halves, window)
    inside = expected.values.t() < expected.values.t()[0] + 0.49
    difference = torch.where(inside, values[:count] - expected.values.t(), 0)
    assert difference.abs().max() < 1e-4
    at = scores.gather(1, places[:count].t()).t() - expected.values.t()[:2]
    assert torch.where(inside[:2], at, 0).abs().max() < 1e-4


def equal_scores_are_all_kept(device: str) -> None:
    codes = normal(1, 16).half().expand(400, 16).to(device)
    halves = codes.float().square().sum(1) / 2
    values, places = half.best_three(codes[:2], codes, halves, torch.zeros(2, device=device))
    assert values.eq(values[0]).all() and places[0].ne(places[1]).all()


def not_finite_numbers_get_some_code(device: str) -> None:
    rows, codebook = (t.to(device) for t in shaped((40, 150, 5)))
    expected = brute_force(rows, codebook)
    bad = rows.clone()
    bad[3, 2], bad[5, 0], bad[6], bad[8] = math.nan, math.inf, -math.inf, math.nan
    with kernel(True):
        codes = nearest_code(bad, codebook)
        good = bad.isfinite().all(1)
        assert torch.equal(codes[good], expected[good])
        assert codes.ge(0).all() and codes.lt(150).all()
        for wrong in (math.nan, math.inf):
            codebook[11, 1] = wrong
            codes = nearest_code(bad, codebook)
            assert codes.ge(0).all() and codes.lt(150).all()


def passes_its_own_trial(device: str) -> None:
    trial.runs_on.cache_clear()
    assert trial.runs_on(torch.device(device), "a test", half._try)


CASES: dict[str, Callable[[str], None]] = {
    **{name: partial(is_the_float64_search, problem=name) for name in PROBLEMS},
    **{f"three of {name}": partial(finds_the_least_three, shape=s) for name, s in SHAPES.items()},
    **{
        case.__name__: case
        for case in (
            is_the_same_under_autocast,
            equal_scores_are_all_kept,
            not_finite_numbers_get_some_code,
            passes_its_own_trial,
        )
    },
}


if __name__ == "__main__":
    print_outcomes(CASES)
