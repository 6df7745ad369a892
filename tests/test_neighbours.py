"""Precision, recall, density, coverage: the papers' definitions one distance at a time."""

import math

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from semvq.evaluation import neighbours
from semvq.evaluation.neighbours import kth_distances, neighbour_figures

FIGURES = {"precision", "recall", "density", "coverage"}


def random(*shape: int, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


def radii(points: list[list[float]], k: int) -> list[float]:
    """Distance of every point to its k-th nearest neighbour, itself left out."""
    found = []
    for i, p in enumerate(points):
        others = sorted(math.dist(p, q) for j, q in enumerate(points) if j != i)
        found.append(others[k - 1])
    return found


def naive(real: Tensor, samples: Tensor) -> dict[str, float]:
    """Kynkäänniemi et al. 2019, Eq. 1 to 3 (k = 3); Naeem et al. 2020, Eq. 4 and 5 (k = 5)."""
    xs, ys = real.tolist(), samples.tolist()
    near_x, near_y, dense_x = radii(xs, 3), radii(ys, 3), radii(xs, 5)

    def inside_any(point: list[float], centres: list[list[float]], radii: list[float]) -> bool:
        return any(math.dist(point, c) <= r for c, r in zip(centres, radii))

    balls = [[math.dist(x, y) < r for y in ys] for x, r in zip(xs, dense_x)]
    return {
        "precision": sum(inside_any(y, xs, near_x) for y in ys) / len(ys),
        "recall": sum(inside_any(x, ys, near_y) for x in xs) / len(xs),
        "density": sum(map(sum, balls)) / (5 * len(ys)),
        "coverage": sum(map(any, balls)) / len(xs),
    }


@pytest.mark.parametrize("sizes", [(6, 6), (60, 90), (120, 40)])
@pytest.mark.parametrize("shift", [0.0, 0.5, 1.5])
def test_is_what_the_papers_define(sizes, shift):
    real, samples = random(sizes[0], 3, seed=1), random(sizes[1], 3, seed=2) * 0.8 + shift
    assert neighbour_figures(real, samples) == pytest.approx(naive(real, samples), abs=1e-15)
    assert neighbour_figures(samples, real) == pytest.approx(naive(samples, real), abs=1e-15)


def test_on_a_line():
    # real 0 … 9: third neighbours are 2 away inside and 3 at the ends (2 at 1 and 8)
    line = torch.arange(10.0).unsqueeze(1)
    assert kth_distances(line, (3,))[3].sqrt().tolist() == [3, 2, 2, 2, 2, 2, 2, 2, 2, 3]
    assert kth_distances(line, (5,))[5].sqrt().tolist() == [5, 4, 3, 3, 3, 3, 3, 3, 4, 5]
    samples = torch.tensor([-3.0, -5.0, 12.0, 4.5, 20.0, 4.4]).unsqueeze(1)
    found = neighbour_figures(line, samples)
    assert found["precision"] == 4 / 6, "-3 and 12 lie on the rims of 0 and 9"
    assert found["density"] == (3 + 8 * 2 + 3) / 30, "-5 lies on the rim of 0, outside"
    assert found["coverage"] == 1
    beside = torch.arange(-5.0, -11.0, -1).unsqueeze(1)
    assert neighbour_figures(line, beside)["coverage"] == 0
    assert neighbour_figures(line, beside + 0.5)["coverage"] == 0.1


def test_a_set_in_itself():
    # whole numbers: distances are exact, and a ball's rim is a rim
    x = (random(300, 6) * 500).round()
    assert neighbour_figures(x, x.flip(0)) == dict.fromkeys(FIGURES, 1.0)


def test_new_draws_of_the_same_distribution():
    # for density and coverage see Naeem et al., Sec. 4: 1, and 1 - (N-1)…(N-k) / (2N-1)…(2N-k)
    n, found = 400, dict.fromkeys(FIGURES, 0.0)
    for s in range(8):
        figures = neighbour_figures(random(n, 4, seed=2 * s), random(n, 4, seed=2 * s + 1))
        found = {name: found[name] + figures[name] / 8 for name in FIGURES}
    coverage = 1 - math.prod((n - k) / (2 * n - k) for k in range(1, 6))
    assert found["density"] == pytest.approx(1, abs=0.02)
    assert found["coverage"] == pytest.approx(coverage, abs=0.01)
    assert found["precision"] == pytest.approx(found["recall"], abs=0.03)


def test_sets_far_apart():
    real = random(50, 8, seed=1)
    assert neighbour_figures(real, random(60, 8, seed=2) + 100) == dict.fromkeys(FIGURES, 0.0)


def test_one_mode_of_two_is_precise_and_misses_half():
    real = torch.cat([random(200, 4, seed=1), random(200, 4, seed=2) + 50])
    found = neighbour_figures(real, random(400, 4, seed=3) * 0.7)
    assert found["precision"] > 0.95 and found["density"] > 1
    assert found["recall"] < 0.5 and found["coverage"] < 0.51


def test_duplicates_have_balls_without_size():
    # ten copies of each point: radius 0, where a rim is a point and an open ball is empty
    x = torch.arange(4.0).repeat(10).unsqueeze(1)
    found = neighbour_figures(x, x)
    assert found == {"precision": 1.0, "recall": 1.0, "density": 0.0, "coverage": 0.0}


@pytest.mark.parametrize("rows", [1, 7, 64, 1000])
def test_block_size_does_not_matter(monkeypatch, rows):
    real, samples = random(150, 4, seed=1), random(130, 4, seed=2) + 0.3
    expected = neighbour_figures(real, samples)
    monkeypatch.setattr(neighbours, "ROWS", rows)
    assert neighbour_figures(real, samples) == expected


class Largest(TorchDispatchMode):
    """Number of elements of the largest tensor made."""

    found = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.found = max(self.found, result.numel())
        return result


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(neighbours, "ROWS", 16)
    real, samples = random(400, 2, seed=1), random(300, 2, seed=2)
    with Largest() as largest:
        neighbour_figures(real, samples)
    assert largest.found == 16 * 400


def test_unusable_features_are_refused():
    x = random(9, 3)
    with pytest.raises(ValueError, match="one width, found 3 and 2"):
        neighbour_figures(x, x[:, :2])
    for pair in ((x, x[:5]), (x[:5], x)):
        with pytest.raises(ValueError, match="at least 6 rows of features, found"):
            neighbour_figures(*pair)
    with pytest.raises(ValueError, match="finite features"):
        neighbour_figures(x, x / 0)
    assert neighbour_figures(x, x[:6])["precision"] == 1
