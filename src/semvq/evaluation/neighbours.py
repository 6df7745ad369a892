"""How two sets of features lie in each other: precision, recall, density, coverage.

Improved precision and recall (Kynkäänniemi et al. 2019, k = 3): the share of samples inside the
union of balls that reach from every real image to its k-th neighbour, and the reverse. Density and
coverage (Naeem et al. 2020, k = 5): in how many real balls a sample lies, and how many real balls
hold a sample; both bear outliers.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from semvq.evaluation.kernel import check_pair

ROWS = 512  # of a distance matrix that are held at a time
PRECISION_K, DENSITY_K = 3, 5


def neighbour_figures(real: Tensor, samples: Tensor) -> dict[str, float]:
    """`precision`, `recall`, `density`, `coverage` of samples (M, D) against real (N, D).

    Balls of precision and recall hold their rim (Kynkäänniemi et al., Eq. 1), those of density and
    coverage do not (Naeem et al., their code): of a set in itself all four are 1, barring
    duplicates. ValueError where a set has fewer than six rows: there is no fifth neighbour.
    """
    check_pair(real, samples, DENSITY_K + 1)
    real, samples = real.double(), samples.double()
    radii = kth_distances(real, (PRECISION_K, DENSITY_K))
    sample_radii = kth_distances(samples, (PRECISION_K,))[PRECISION_K]
    inside = torch.zeros(len(samples), dtype=torch.bool, device=samples.device)
    recalled, covered, num_balls = [], [], 0
    near, dense = (radii[k].split(ROWS) for k in (PRECISION_K, DENSITY_K))
    for distance, near_part, dense_part in zip(_distances(real, samples), near, dense):
        inside |= (distance <= near_part.unsqueeze(1)).any(0)
        recalled.append((distance <= sample_radii).any(1))
        in_ball = distance < dense_part.unsqueeze(1)
        num_balls += int(in_ball.sum())
        covered.append(in_ball.any(1))
    return {
        "precision": _share(inside),
        "recall": _share(torch.cat(recalled)),
        "density": num_balls / (DENSITY_K * len(samples)),
        "coverage": _share(torch.cat(covered)),
    }


def kth_distances(x: Tensor, ks: tuple[int, ...]) -> dict[int, Tensor]:
    """Squared distance (N,) of every row of x (N, D) to its k-th nearest other row, by k."""
    found: dict[int, list[Tensor]] = {k: [] for k in ks}
    for distance in _distances(x, x):
        # one more than asked for: a row is its own nearest
        nearest = distance.topk(max(ks) + 1, largest=False, sorted=True).values
        for k in ks:
            found[k].append(nearest[:, k])
    return {k: torch.cat(parts) for k, parts in found.items()}


def _distances(x: Tensor, y: Tensor) -> Iterator[Tensor]:
    """Squared distances of rows of x to all of y, `ROWS` at a time; never negative."""
    norms = y.square().sum(1)
    for part in x.split(ROWS):
        squared = torch.addmm(norms, part, y.T, alpha=-2)
        yield squared.add_(part.square().sum(1, keepdim=True)).clamp_min_(0)


def _share(hits: Tensor) -> float:
    return float(hits.double().mean())
