"""Fréchet distance: closed forms, two other implementations, and moments however rows come in."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from semvq.evaluation import frechet
from semvq.evaluation.frechet import Gaussian, Moments, fit, frechet_distance

EYE = torch.eye(24, dtype=torch.float64)


def random(*shape: int, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


def rotation(dim: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(random(dim, dim, seed=seed)).Q


def features(num: int, dim: int, seed: int) -> Tensor:
    """Rows with a mean and correlations of their own, as of a network."""
    return random(num, dim, seed=seed) @ random(dim, dim, seed=seed + 100) / dim**0.5 + seed


def gaussian(covariance: Tensor, mean: float = 0.0) -> Gaussian:
    return Gaussian(torch.full(covariance.shape[:1], mean, dtype=torch.float64), covariance, 1000)


def by_sqrtm(a: Gaussian, b: Gaussian) -> float:
    """The usual route: SciPy's root of the product of covariances, its imaginary part dropped."""
    root = scipy.linalg.sqrtm(a.covariance.numpy() @ b.covariance.numpy())
    spread = a.covariance.trace() + b.covariance.trace() - 2 * np.trace(root).real
    return float((a.mean - b.mean).square().sum() + spread)


class Projection(nn.Module):
    """A fixed random linear map of flattened images, (N, 3, 8, 8) to (N, 128), in float64."""

    num_features = 128

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("matrix", random(192, 128, seed=5) / 14)

    def forward(self, images: Tensor) -> Tensor:
        return images.double().flatten(1) @ self.matrix


def by_torchmetrics(projection: Projection, a: Tensor, b: Tensor) -> float:
    metric = FrechetInceptionDistance(projection, normalize=True)
    metric.update(a, real=True)
    metric.update(b, real=False)
    return float(metric.compute())


def image_sets(num: int) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(num)
    x = torch.rand(2, num, 3, 8, 8, generator=rng)
    return x[0], 0.8 * x[1] ** 2 + 0.1


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e30])
def test_commuting_gaussians(scale):
    # one basis: the sum of (sqrt a - sqrt b)^2 over axes; spread over six orders of magnitude
    basis = rotation(24)
    a, b = (10 ** (6 * random(24, seed=s).sigmoid() - 3) * scale for s in (1, 2))
    found = frechet_distance(
        gaussian(basis * a @ basis.T, 2 * scale**0.5), gaussian(basis * b @ basis.T)
    )
    expected = 24 * 4 * scale + (a.sqrt() - b.sqrt()).square().sum()
    assert found == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize("rank", [24, 9, 1])
def test_gaussians_that_do_not_commute(rank):
    # b is a carried along by a symmetric positive map T: then T is the optimal transport, and the
    # distance is the mean of |T x - x|^2 = tr((T - 1) C_a (T - 1)), for a of any rank
    root = random(24, rank, seed=1)
    transport = rotation(24) * (0.2 + 2 * random(24, seed=2).sigmoid()) @ rotation(24).T
    a, b = root @ root.T, transport @ root @ root.T @ transport
    assert not torch.allclose(a @ b, b @ a, rtol=0.1)
    expected = ((transport - EYE) @ a @ (transport - EYE)).trace()
    assert frechet_distance(gaussian(a), gaussian(b)) == pytest.approx(float(expected), rel=1e-7)


def test_gaussians_without_a_common_direction():
    a, b = random(24, 5, seed=1), random(24, 7, seed=2)
    a[12:], b[:12] = 0, 0
    basis = rotation(24)
    a, b = (basis @ x @ x.T @ basis.T for x in (a, b))
    expected = 24 * 9 + float(a.trace() + b.trace())
    assert frechet_distance(gaussian(a, 3.0), gaussian(b)) == pytest.approx(expected, rel=1e-9)


def test_points_are_apart_by_their_distance():
    assert frechet_distance(gaussian(0 * EYE, 1.0), gaussian(0 * EYE)) == 24
    assert frechet_distance(gaussian(0 * EYE, 1.0), gaussian(EYE)) == pytest.approx(48)


def hard_cases() -> list[Gaussian]:
    root, basis = random(24, 6, seed=3), rotation(24, seed=4)
    nearly = basis * torch.logspace(0, -17, 24, dtype=torch.float64) @ basis.T
    cases = [EYE, 0 * EYE, nearly, root @ root.T, root @ root.T + 1e-14 * EYE]
    cases += [EYE * 1e-200, EYE * 1e200, nearly * 1e-200, (root @ root.T) * 1e200]
    # as rounding leaves it: not quite symmetric, an eigenvalue slightly below zero
    cases += [root @ root.T - 1e-15 * EYE + 1e-15 * random(24, 24), nearly - 1e-16 * EYE]
    return [gaussian(c) for c in cases] + [fit(features(n, 24, 1)) for n in (2, 3, 24, 25, 4096)]


def test_never_negative_and_symmetric():
    for a in hard_cases():
        for b in hard_cases():
            found = frechet_distance(a, b)
            size = float(a.covariance.trace() + b.covariance.trace() + (a.mean - b.mean).norm())
            assert isinstance(found, float) and math.isfinite(found) and found >= 0
            assert found == pytest.approx(frechet_distance(b, a), rel=1e-9, abs=1e-12 * size)


def test_of_a_set_with_itself():
    x = features(4096, 128, 1)
    assert frechet_distance(fit(x), fit(x)) < 1e-6
    assert frechet_distance(fit(x), fit(x.flip(0))) < 1e-6, "the order of rows does not matter"
    for case in hard_cases():
        assert frechet_distance(case, case) <= 1e-12 * float(case.covariance.trace())
    assert frechet_distance(fit(x), fit(x + 0.01)) == pytest.approx(128 * 1e-4, rel=1e-6)


def test_equals_scipy_and_torchmetrics_at_full_rank():
    projection, (a, b) = Projection(), image_sets(4096)
    ours = [fit(projection(x)) for x in (a, b)]
    found = frechet_distance(*ours)
    assert found > 0.1
    assert found == pytest.approx(by_sqrtm(*ours), rel=1e-9)
    assert found == pytest.approx(by_torchmetrics(projection, a, b), rel=1e-9)


@pytest.mark.parametrize("num", [20, 80, 120])
def test_equals_them_loosely_below_full_rank(num):
    projection, (a, b) = Projection(), image_sets(num)
    ours = [fit(projection(x)) for x in (a, b)]
    found = frechet_distance(*ours)
    # measured: both 2e-8 to 5e-8 lower at N = 20 to 120; they add up roots of rounding errors
    # where ours leaves empty directions out
    assert found == pytest.approx(by_sqrtm(*ours), rel=1e-6)
    assert found == pytest.approx(by_torchmetrics(projection, a, b), rel=1e-6)


def moments(*parts: Tensor) -> Moments:
    found = Moments(parts[0].shape[1])
    for part in parts:
        found.add(part)
    return found


def test_moments_are_those_of_numpy():
    x = features(1500, 16, 1)
    found = fit(x)
    assert found.num == 1500 and found.mean.dtype == found.covariance.dtype == torch.float64
    np.testing.assert_allclose(found.mean, x.numpy().mean(0), rtol=1e-13)
    np.testing.assert_allclose(found.covariance, np.cov(x.numpy().T), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("size", [1, 7, 511, 512, 513, 1024, 1500])
def test_batches_do_not_matter_to_the_last_bit(size):
    x = features(1500, 16, 1).float()
    parts = (x[:0], *x.split(size))
    found, expected = moments(*parts).gaussian(), fit(x)
    assert found.num == expected.num
    assert torch.equal(found.mean, expected.mean)
    assert torch.equal(found.covariance, expected.covariance)


def test_looking_on_the_way_changes_nothing():
    x, found = features(700, 16, 1), Moments(16)
    for part in x.split(100):
        found.add(part)
        early = found.gaussian()
        assert early.num == found.num
    early.mean.zero_()
    assert torch.equal(found.gaussian().covariance, fit(x).covariance)
    assert torch.equal(found.gaussian().mean, fit(x).mean)


@pytest.mark.parametrize("ends", [(0, 1200), (3, 1200), (512, 1024), (700, 700)])
def test_merged_shards_are_one_pass(ends):
    x = features(1500, 16, 1)
    shards = [moments(p) for p in (x[: ends[0]], x[ends[0] : ends[1]], x[ends[1] :])]
    last = shards[1].gaussian().covariance if ends[1] - ends[0] > 1 else None
    for other in shards[1:]:
        shards[0].merge(other)
    found, expected = shards[0].gaussian(), fit(x)
    assert found.num == shards[0].num == 1500
    torch.testing.assert_close(found.mean, expected.mean, rtol=1e-13, atol=0)
    torch.testing.assert_close(found.covariance, expected.covariance, rtol=1e-12, atol=1e-14)
    if last is not None:
        assert torch.equal(shards[1].gaussian().covariance, last), "what is merged stays"
    shards[0].add(x[:5])
    again = fit(torch.cat([x, x[:5]]))
    torch.testing.assert_close(shards[0].gaussian().covariance, again.covariance)


def test_a_mean_far_from_zero_costs_nothing():
    # exact in float64: multiples of 2^-20 around 1000
    x, y = ((random(3000, 32, seed=s) * 2**20).round() / 2**20 for s in (1, 2))
    far, near = fit(x + 1000), fit(x)
    torch.testing.assert_close(far.covariance, near.covariance, rtol=0, atol=1e-14)
    found = frechet_distance(far, fit(2 * y + 1000))
    assert found == pytest.approx(frechet_distance(near, fit(2 * y)), rel=1e-12)
    # and without full rank, where raw sums leave roots of rounding errors
    few = [frechet_distance(fit(x[:9] + shift), fit(y[:9] + shift)) for shift in (0, 1000)]
    assert few[1] == pytest.approx(few[0], rel=1e-12)


def test_one_large_batch_is_held_once_only():
    found = moments(torch.zeros(5000, 4))
    assert found._block.shape == (frechet.BLOCK, 4)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_refused(bad):
    x = torch.zeros(4, 3)
    x[2, 1] = bad
    for use in (fit, Moments(3).add):
        with pytest.raises(ValueError, match="expected finite features, found NaN or infinity"):
            use(x)
    for mean, covariance in ((x[2], EYE[:3, :3]), (EYE[0, :3], x[:3])):
        with pytest.raises(ValueError, match="finite mean and covariance"):
            Gaussian(mean, covariance, 10)


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match=r"expected features \(N, 3\), found \(4, 2\)"):
        Moments(3).add(torch.zeros(4, 2))
    with pytest.raises(ValueError, match=r"expected features \(N, D\), found \(4, 2, 1\)"):
        fit(torch.zeros(4, 2, 1))
    with pytest.raises(ValueError, match="width 3, found 2"):
        Moments(3).merge(moments(torch.zeros(4, 2)))
    with pytest.raises(ValueError, match="one width, found 24 and 5"):
        frechet_distance(gaussian(EYE), gaussian(EYE[:5, :5]))
    with pytest.raises(ValueError, match=r"covariance \(3, 3\), found \(2, 2\)"):
        Gaussian(torch.zeros(3), torch.zeros(2, 2), 10)


@pytest.mark.parametrize("num", [0, 1])
def test_fewer_than_two_rows_are_refused(num):
    with pytest.raises(ValueError, match=f"at least 2 rows of features, found {num}"):
        fit(torch.zeros(num, 3))
    assert fit(torch.zeros(2, 3)).covariance.count_nonzero() == 0


def test_the_root_of_a_reference_is_taken_once(monkeypatch):
    decompose, calls = torch.linalg.eigh, []
    monkeypatch.setattr(torch.linalg, "eigh", lambda x: calls.append(len(x)) or decompose(x))
    rows = torch.randn(80, 9, generator=torch.Generator().manual_seed(0))
    reference, few = fit(rows), [fit(rows[i : i + 5]) for i in range(4)]
    found = [frechet_distance(reference, one) for one in few]
    assert calls == [9], "few rows have a thin one, that takes none"
    assert found == [frechet_distance(fit(rows), one) for one in few], "to the last bit"
