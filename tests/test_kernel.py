"""Kernel distance: the formula pair by pair, no bias, an error that is the true spread."""

import itertools
import math

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchmetrics.image.kid import KernelInceptionDistance

from semvq.evaluation import kernel
from semvq.evaluation.kernel import kernel_distance


def random(*shape: int, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


def naive(x: Tensor, y: Tensor) -> float:
    """Binkowski et al. 2018, Eq. 4, one pair of rows at a time."""

    def k(a: list[float], b: list[float]) -> float:
        return (sum(p * q for p, q in zip(a, b)) / len(a) + 1) ** 3

    def within(rows: list[list[float]]) -> float:
        pairs = list(itertools.permutations(rows, 2))
        return math.fsum(k(a, b) for a, b in pairs) / len(pairs)

    xs, ys = x.tolist(), y.tolist()
    between = math.fsum(k(a, b) for a in xs for b in ys) / (len(xs) * len(ys))
    return within(xs) + within(ys) - 2 * between


@pytest.mark.parametrize("sizes", [(4, 4), (13, 29), (40, 9)])
def test_is_the_mean_over_pairs(sizes):
    x, y = random(sizes[0], 5, seed=1), random(sizes[1], 5, seed=2) * 1.5 + 0.3
    assert kernel_distance(x, y).value == pytest.approx(naive(x, y), rel=1e-12)
    assert kernel_distance(y, x) == pytest.approx(kernel_distance(x, y), rel=1e-12)


@pytest.mark.filterwarnings("ignore:Metric `Kernel:UserWarning")
def test_equals_torchmetrics_on_one_subset_of_all():
    x, y = random(500, 64, seed=1), random(500, 64, seed=2) * 1.2 + 0.1
    metric = KernelInceptionDistance(nn.Identity(), subsets=1, subset_size=500)
    metric.update(x, real=True)
    metric.update(y, real=False)
    assert kernel_distance(x, y).value == pytest.approx(float(metric.compute()[0]), rel=1e-10)


def test_of_known_distributions():
    # of +-1 in one dimension with itself: k is 8 for equal and 0 for unequal signs
    x = torch.tensor([1.0, -1.0]).repeat(50).unsqueeze(1)
    within, between = 8 * 49 / 99, 4.0
    assert kernel_distance(x, x).value == pytest.approx(2 * (within - between))
    # points apart: 8 + 8 - 2 * 0; no spread, no error
    found = kernel_distance(torch.ones(9, 1), -torch.ones(7, 1))
    assert found == pytest.approx((16, 0))


def unexplained(values: Tensor, effects: Tensor) -> float:
    """Unbiased variance of values (P,) about their best fit by sums of effects (P, E), 0 or 1."""
    fitted = torch.linalg.lstsq(effects, values.unsqueeze(1), driver="gelsd").solution
    rest = (values - (effects @ fitted)[:, 0]).square().sum()
    return float(rest / (len(values) - torch.linalg.matrix_rank(effects)))


def test_what_only_pairs_add_is_told_from_what_rows_add():
    x, y = random(9, 3, seed=1), random(7, 3, seed=2) + 0.5

    def cubes(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / 3 + 1) ** 3

    i, j = torch.triu_indices(9, 9, 1)
    eye = torch.eye(9, dtype=torch.float64)
    expected = unexplained(cubes(x, x)[i, j], eye[i] + eye[j])
    assert float(kernel._pairs_within(x).rest) == pytest.approx(expected, rel=1e-9)
    i, j = torch.cartesian_prod(torch.arange(9), torch.arange(7)).T
    effects = torch.cat([eye[i], eye[j, :7]], 1)
    expected = unexplained(cubes(x, y)[i, j], effects)
    assert float(kernel._pairs_between(x, y).rest) == pytest.approx(expected, rel=1e-9)


NUM_DRAWS = 1200
SETTINGS = {"equal": (60, 60, 0.0), "near": (60, 60, 0.15), "apart": (60, 60, 0.7)}
SETTINGS |= {"of two sizes": (30, 120, 0.0)}  # name: (N, M, shift of every coordinate)


@pytest.fixture(scope="module", params=SETTINGS)
def draws(request) -> tuple[float, Tensor, Tensor]:
    """The shift, and values and errors over independent pairs of sets, normal in 6 dimensions."""
    n, m, shift = SETTINGS[request.param]
    found = [
        kernel_distance(random(n, 6, seed=2 * s), random(m, 6, seed=2 * s + 1) + shift)
        for s in range(NUM_DRAWS)
    ]
    return shift, *torch.tensor(found, dtype=torch.float64).unbind(1)


def mean_kernel(u: float, v: float, dim: int = 6) -> float:
    """E (a.b / D + 1)^3 for a and b normal, of unit variance and mean u, v in every coordinate."""
    w, uu, vv = dim * u * v, dim * u * u, dim * v * v
    square, cube = dim + uu + vv + w**2, w**3 + 3 * w * (uu + vv + dim + 2)
    return cube / dim**3 + 3 * square / dim**2 + 3 * w / dim + 1


def test_is_unbiased(draws):
    shift, values, _ = draws
    expected = mean_kernel(0, 0) + mean_kernel(shift, shift) - 2 * mean_kernel(0, shift)
    error = float(values.std()) / NUM_DRAWS**0.5
    assert float(values.mean()) == pytest.approx(expected, abs=3 * error)
    if shift == 0:
        assert 0.3 < float((values < 0).double().mean()) < 0.7


def test_error_is_the_spread_over_draws(draws):
    # a little too large for equal sets, as no row's own share is taken for less than nothing
    _, values, errors = draws
    ratio = float(errors.square().mean().sqrt() / values.std())
    assert 0.92 < ratio < 1.25


def test_error_of_large_sets_shrinks_as_it_should():
    def error(n: int, shift: float) -> float:
        sets = [(random(n, 6, seed=s), random(n, 6, seed=s + 50) + shift) for s in range(50)]
        return sum(kernel_distance(*pair).error for pair in sets) / 50

    # alike: by N; unlike: by the root of N
    assert error(100, 0.0) / error(400, 0.0) == pytest.approx(4, rel=0.15)
    assert error(100, 1.0) / error(400, 1.0) == pytest.approx(2, rel=0.15)


@pytest.mark.parametrize("rows", [1, 7, 64, 200])
def test_block_size_does_not_matter(monkeypatch, rows):
    x, y = random(70, 5, seed=1), random(50, 5, seed=2) + 0.2
    expected = kernel_distance(x, y)
    monkeypatch.setattr(kernel, "ROWS", rows)
    assert kernel_distance(x, y) == pytest.approx(expected, rel=1e-11)


class Largest(TorchDispatchMode):
    """Number of elements of the largest tensor made."""

    found = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.found = max(self.found, result.numel())
        return result


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(kernel, "ROWS", 16)
    x, y = random(400, 2, seed=1), random(300, 2, seed=2)
    with Largest() as largest:
        kernel_distance(x, y)
    assert largest.found == 800, "no more than the features themselves"


def test_features_of_any_precision():
    x, y = random(40, 5, seed=1).float(), random(50, 5, seed=2).float() * 2
    assert kernel_distance(x, y) == kernel_distance(x.double(), y.double())


def test_unusable_features_are_refused():
    x = random(9, 3)
    with pytest.raises(ValueError, match="one width, found 3 and 2"):
        kernel_distance(x, x[:, :2])
    with pytest.raises(ValueError, match="at least 4 rows of features, found 9 and 3"):
        kernel_distance(x, x[:3])
    with pytest.raises(ValueError, match=r"expected features \(N, D\), found \(3,\)"):
        kernel_distance(x[0], x)
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="finite features"):
            kernel_distance(x, torch.full((9, 3), bad))
