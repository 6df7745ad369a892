"""Classifier score: the formula over all images at once, its ends, and any size of batch."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from semvq.evaluation.classifier_score import ClassifierScore
from semvq.evaluation.subsets import SCORE_SPLITS, ranks


def logits_of(num: int, num_classes: int, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(num, num_classes, generator=rng, dtype=torch.float64)


def score(*parts: Tensor, num_splits: int = 10) -> tuple[float, float]:
    found = ClassifierScore(sum(map(len, parts)), num_splits)
    for part in parts:
        found.add(part)
    return found.result()


def naive(logits: Tensor, num_splits: int) -> tuple[float, float]:
    """Salimans et al. 2016, as in their code, of images in our order: NumPy's mean and std."""
    shares = np.exp(logits.numpy())[ranks(len(logits), SCORE_SPLITS).argsort().numpy()]
    shares /= shares.sum(1, keepdims=True)
    scores = []
    for s in range(num_splits):
        part = shares[s * len(shares) // num_splits : (s + 1) * len(shares) // num_splits]
        divergence = part * (np.log(part) - np.log(part.mean(0, keepdims=True)))
        scores.append(np.exp(divergence.sum(1).mean()))
    return np.mean(scores), np.std(scores)


@pytest.mark.parametrize(("num", "num_splits"), [(200, 10), (207, 10), (10, 10), (33, 1), (50, 7)])
def test_is_the_formula(num, num_splits):
    logits = logits_of(num, 12)
    expected = naive(logits, num_splits)
    assert score(logits, num_splits=num_splits) == pytest.approx(expected, rel=1e-12, abs=1e-12)
    assert expected[0] > 1.5 or num_splits == num


def test_logarithms_of_probabilities_are_logits():
    logits = logits_of(200, 12)
    assert score(logits.softmax(1).log()) == pytest.approx(score(logits + 7), rel=1e-12)


def test_single_precision_ends_at_the_logits():
    logits = logits_of(200, 12).float()
    assert score(logits) == score(logits.double())


def test_unsure_of_all_is_one():
    assert score(torch.zeros(100, 9)) == pytest.approx((1, 0), abs=1e-14)
    same = logits_of(1, 9).expand(100, 9)
    assert score(same) == pytest.approx((1, 0), abs=1e-12), "sure, but of one class only"


@pytest.mark.parametrize("num_classes", [2, 10, 1000])
def test_sure_of_balanced_classes_is_their_number(num_classes):
    classes = torch.arange(10 * num_classes) % num_classes
    one_hot = torch.nn.functional.one_hot(classes, num_classes).double()
    for logits in (one_hot.log(), 1000 * one_hot):
        found = score(logits, num_splits=1)
        assert found == pytest.approx((num_classes, 0), rel=1e-12, abs=1e-9)


def test_splits_do_not_follow_the_order():
    # in order each tenth would hold one class: a score of 1 and no spread
    one_hot = torch.eye(10).repeat_interleave(200, dim=0).log()
    found = score(one_hot)
    assert score(one_hot, num_splits=1) == pytest.approx((10, 0))
    assert 9.5 < found[0] < 10 and 0 < found[1] < 0.2
    in_turn = score(torch.eye(10).repeat(200, 1).log())
    assert found[0] == pytest.approx(in_turn[0], abs=0.1)


@pytest.mark.parametrize("size", [1, 7, 20, 64, 500])
def test_batches_do_not_matter_to_the_last_bit(size):
    logits = logits_of(503, 1000).float()
    assert score(logits[:0], *logits.split(size)) == score(logits)


@pytest.mark.parametrize(("num", "num_splits"), [(9, 10), (0, 1), (5, 0)])
def test_fewer_images_than_splits_are_refused(num, num_splits):
    with pytest.raises(ValueError, match=f"found {num} images and {num_splits} splits"):
        ClassifierScore(num, num_splits)


def test_other_numbers_of_images_are_refused():
    found = ClassifierScore(20)
    with pytest.raises(ValueError, match="expected 20 images, found 0"):
        found.result()
    found.add(torch.zeros(19, 3))
    assert not found.is_complete
    with pytest.raises(ValueError, match="expected 20 images, found 19"):
        found.result()
    with pytest.raises(ValueError, match="expected 20 images, found 21 or more"):
        found.add(torch.zeros(2, 3))
    found.add(torch.zeros(1, 3))
    assert found.is_complete
    assert found.result() == found.result() == pytest.approx((1, 0))


def test_unusable_logits_are_refused():
    found = ClassifierScore(20)
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="finite logits"):
            found.add(torch.tensor([[0.0, bad, 1.0]]))
    with pytest.raises(ValueError, match="finite logits"):
        found.add(torch.full((1, 3), -math.inf))
    found.add(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"expected logits \(N, 3\), found \(2, 4\)"):
        found.add(torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"found \(3,\)"):
        found.add(torch.zeros(3))
