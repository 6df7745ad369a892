"""Counter-based noise: what it depends on, what it must not depend on, and that it is noise."""

import math

import pytest
import torch
from torch import Tensor

from semvq.generators.noise import AR_CODES, NAR_CODES, Noise, _mix

GOLDEN = [[1931254502, 1229650560, 4183943898], [3785784737, 2892579069, 2124635223]]


def ks_distance(values: Tensor) -> float:
    """Kolmogorov-Smirnov distance of `values` from the uniform distribution on [0, 1]."""
    ordered = values.flatten().sort().values
    n = len(ordered)
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    return float(torch.maximum(steps[1:] - ordered, ordered - steps[:-1]).max())


def chi_square(counts: Tensor, expected: Tensor) -> float:
    """Standardised chi-square statistic: about normal(0, 1) for many cells."""
    freedom = len(counts) - 1
    statistic = float(((counts - expected) ** 2 / expected).sum())
    return (statistic - freedom) / math.sqrt(2 * freedom)


def test_a_sample_gets_the_same_noise_in_any_batch():
    codes = torch.arange(50)
    whole = Noise.consecutive(3, 0, 8).gumbel(AR_CODES, 7, codes)
    assert whole.shape == (8, 50) and whole.dtype == torch.float32
    part = Noise.consecutive(3, 5, 2).gumbel(AR_CODES, 7, codes)
    shuffled = Noise(3, torch.tensor([6, 1])).gumbel(AR_CODES, 7, codes)
    assert torch.equal(part, whole[5:7])
    assert torch.equal(shuffled, whole[[6, 1]])


def test_one_position_at_a_time_equals_all_at_once():
    noise, codes = Noise.consecutive(0, 0, 3), torch.arange(11)
    together = noise.uniform(NAR_CODES, 4, torch.arange(6)[:, None], codes)
    assert together.shape == (3, 6, 11)
    for position in range(6):
        assert torch.equal(together[:, position], noise.uniform(NAR_CODES, 4, position, codes))


def test_every_counter_matters():
    codes = torch.arange(64)

    def bits(seed: int = 1, index: int = 2, stream: int = AR_CODES, where: int = 3) -> Tensor:
        return Noise.consecutive(seed, index, 1).bits(stream, where, codes)

    others = [
        bits(seed=2), bits(seed=1 + 2**32), bits(seed=-1), bits(index=3), bits(stream=NAR_CODES),
        bits(where=4), bits(index=3, where=2),
    ]  # fmt: skip
    for other in others:
        assert int((bits() == other).sum()) == 0
        assert len(bits().unique()) == 64


def test_the_stream_is_pinned():
    # A change of these values changes every published sample.
    found = Noise.consecutive(2024, 7, 2).bits(AR_CODES, 5, torch.arange(3))
    assert found.tolist() == GOLDEN


def test_mixing_never_overflows_int64():
    words = [0, 1, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1, *range(0, 2**32, 99_999_989)]
    assert _mix(torch.tensor(words)).tolist() == [_mix(w) for w in words]


def test_mixing_is_a_bijection_and_avalanches():
    words = torch.randint(0, 2**32, (4096,), generator=torch.Generator().manual_seed(0))
    for bit in range(32):
        flipped = _mix(words) ^ _mix(words ^ (1 << bit))
        share = torch.stack([(flipped >> b) & 1 for b in range(32)]).double().mean(1)
        assert bool((share - 0.5).abs().max() < 0.05)
    block = torch.arange(2**16)
    assert len(_mix(block).unique()) == 2**16


@pytest.mark.parametrize("axis", ["index", "position", "code"])
def test_uniform_along_every_axis(axis: str):
    num = 1 << 16
    many = torch.arange(num)
    if axis == "index":
        values = Noise.consecutive(5, 0, num).uniform(AR_CODES, 1, 2)
    elif axis == "position":
        values = Noise.consecutive(5, 0, 1).uniform(AR_CODES, many, 2)
    else:
        values = Noise.consecutive(5, 0, 1).uniform(AR_CODES, 1, many)
    values = values.flatten()
    assert float(values.min()) > 0 and float(values.max()) < 1
    assert ks_distance(values) < 1.63 / math.sqrt(num)  # 1 % level; the draw is fixed
    centred = values - 0.5
    for lag in (1, 2, 16, 256):
        correlation = float((centred[lag:] * centred[:-lag]).mean()) * 12
        assert abs(correlation) < 3.5 / math.sqrt(num)


def test_every_byte_is_uniform():
    bits = Noise.consecutive(9, 0, 64).bits(AR_CODES, 0, torch.arange(1024)).flatten()
    expected = torch.full((256,), len(bits) / 256)
    for shift in (0, 8, 16, 24):
        counts = torch.bincount((bits >> shift) & 255, minlength=256)
        assert abs(chi_square(counts, expected)) < 3


def test_samples_never_share_a_stream():
    # 50k samples, the FID protocol's number: with one 32-bit state a clash would be likely.
    bits = Noise.consecutive(0, 0, 50_000).bits(AR_CODES, 0, torch.arange(2))
    assert len((bits[:, 0] * 2**31 + bits[:, 1] // 2).unique()) == 50_000


def test_gumbel_max_draws_from_the_softmax():
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0, 0.5])
    num = 40_000
    drawn = (logits + Noise.consecutive(1, 0, num).gumbel(AR_CODES, 3, torch.arange(5))).argmax(-1)
    counts = torch.bincount(drawn, minlength=5)
    assert abs(chi_square(counts, num * logits.softmax(0))) < 3


def test_gumbel_has_the_moments_of_a_gumbel():
    values = Noise.consecutive(1, 0, 200).gumbel(AR_CODES, 0, torch.arange(500)).double()
    assert float(values.mean()) == pytest.approx(0.5772, abs=0.02)
    assert float(values.var()) == pytest.approx(math.pi**2 / 6, abs=0.04)
    assert bool(torch.isfinite(values).all())


def test_sample_indices_must_be_32_bit():
    with pytest.raises(ValueError, match="expected sample indices"):
        Noise.consecutive(0, 2**32 - 1, 2)
    with pytest.raises(ValueError, match="expected sample indices"):
        Noise.consecutive(0, -1, 2)
    assert Noise.consecutive(0, 2**32 - 1, 1).bits(AR_CODES).shape == (1,)
