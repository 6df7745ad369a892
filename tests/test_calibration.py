"""Reliability: simulated sources whose calibration is known, and bins counted by hand."""

import math

import pytest
import torch

from semvq.probe.calibration import NUM_BINS, Reliability, expected_calibration_error

NUM = 400_000


def source(gap: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Predictions in (0.3, 1) that are right in confidence - gap of the cases."""
    generator = torch.Generator().manual_seed(seed)
    confidence = 0.3 + 0.7 * torch.rand(NUM, generator=generator, dtype=torch.float64)
    return confidence, torch.rand(NUM, generator=generator) < confidence - gap


def test_a_calibrated_source_has_no_error():
    assert expected_calibration_error(*source(0.0)) < 0.005


@pytest.mark.parametrize("gap", [0.1, 0.25])
def test_an_overconfident_source_has_its_gap(gap):
    assert expected_calibration_error(*source(gap)) == pytest.approx(gap, abs=0.003)


def test_gaps_of_both_signs_add_up():
    confidence = torch.tensor([0.5] * 10 + [0.9] * 30)
    correct = torch.tensor([True] * 7 + [False] * 3 + [True] * 21 + [False] * 9)
    # (10 x |0.7 - 0.5| + 30 x |0.7 - 0.9|) / 40, though the mean gap is -0.1
    assert expected_calibration_error(confidence, correct) == pytest.approx(0.2)


def test_edges_belong_to_the_bin_below():
    reliability = Reliability()
    edges = torch.tensor([0.0, 1 / 15, 2 / 15, 1.0], dtype=torch.float64)
    above = torch.tensor([math.nextafter(1 / 15, 1)], dtype=torch.float64)
    reliability.add(torch.cat([edges, above]), torch.ones(5, dtype=torch.bool))
    assert reliability.num.tolist() == [2, 2] + [0] * (NUM_BINS - 3) + [1]


def test_the_curve_is_mean_confidence_accuracy_and_count():
    reliability = Reliability()
    reliability.add(torch.tensor([[0.5, 0.52], [0.9, 1.0]]), torch.tensor([[1, 0], [1, 1]]))
    curve = reliability.curve()
    bins = [math.ceil(0.5 * 15) - 1, math.ceil(0.9 * 15) - 1, NUM_BINS - 1]
    assert curve.num[bins].tolist() == [2, 1, 1] and curve.num.sum() == 4
    assert curve.confidence[bins].tolist() == pytest.approx([0.51, 0.9, 1.0])
    assert curve.accuracy[bins].tolist() == [0.5, 1.0, 1.0]
    assert curve.accuracy.isnan().sum() == NUM_BINS - 3
    assert curve.confidence.dtype == curve.accuracy.dtype == torch.float64


def test_pieces_and_merging_give_the_same():
    confidence, correct = source(0.1)
    whole, pieces, other = Reliability(), Reliability(), Reliability()
    whole.add(confidence, correct)
    for part in (slice(0, 7), slice(7, 1000)):
        pieces.add(confidence[part], correct[part])
    other.add(confidence[1000:], correct[1000:])
    pieces.merge(other)
    for a, b in zip(whole.curve(), pieces.curve()):
        assert torch.allclose(a, b, rtol=1e-12, equal_nan=True)
    assert pieces.expected_error() == pytest.approx(whole.expected_error(), rel=1e-12)


def test_what_it_refuses():
    with pytest.raises(ValueError, match="found none"):
        Reliability().expected_error()
    with pytest.raises(ValueError, match=r"expected correct of shape \(3,\)"):
        expected_calibration_error(torch.rand(3), torch.ones(4, dtype=torch.bool))
    for bad in (1.5, -0.1, math.nan):
        with pytest.raises(ValueError, match=r"expected confidence in \[0, 1\], found"):
            expected_calibration_error(torch.tensor([0.5, bad]), torch.tensor([True, True]))
