"""Figures against closed forms, and the class-agreement classifier on separable data."""

import math

import pytest
import torch

from semvq.evaluation.agreement import LinearClassifier, accuracy
from semvq.metrics import (
    chroma_r2,
    class_unigram_entropy,
    code_usage,
    perplexity,
    psnr,
    unigram_cross_entropy,
    unigram_entropy,
)


def test_psnr_of_a_known_error():
    images = torch.zeros(2, 3, 4, 4)
    # an error of 0.2 on a range of 2 is 20 dB; values beyond the range are clamped first
    assert psnr(images + 0.2, images).tolist() == pytest.approx([20.0, 20.0], abs=1e-4)
    ones = torch.ones(1, 3, 4, 4)
    assert psnr(ones * 3, ones).item() == pytest.approx(psnr(ones, ones).item())


def test_chroma_is_kept_faded_and_lost():
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    grey = images.mean(1, keepdim=True).expand_as(images)
    assert chroma_r2(images, images) == pytest.approx(1)
    assert chroma_r2(grey + (images - grey) / 2, images) == pytest.approx(0.75, abs=0.02)
    assert chroma_r2(grey, images) == pytest.approx(0, abs=0.05)
    brighter = (images + 0.1).clamp(-1, 1)
    assert chroma_r2(brighter, images) > 0.97, "brightness is not colour"


def test_entropies_of_known_codes():
    codes = torch.tensor([[[0, 0], [1, 1]], [[2, 2], [3, 3]]])
    assert unigram_entropy(codes, 8) == pytest.approx(math.log(4))
    assert perplexity(codes, 8) == pytest.approx(4)
    assert code_usage(codes, 8) == 0.5
    # within each class only two codes occur
    assert class_unigram_entropy(codes, torch.tensor([0, 1]), 8) == pytest.approx(math.log(2))
    assert class_unigram_entropy(codes, torch.tensor([0, 0]), 8) == pytest.approx(math.log(4))


def test_unigram_cross_entropy_is_at_least_the_entropy():
    rng = torch.Generator().manual_seed(0)
    train = torch.randint(0, 8, (50, 4, 4), generator=rng)
    held_out = torch.randint(0, 4, (50, 4, 4), generator=rng)
    paid = unigram_cross_entropy(train, held_out, 8)
    assert paid > unigram_entropy(held_out, 8)
    assert paid == pytest.approx(math.log(8), abs=0.1)


def test_classifier_learns_what_is_separable_and_only_that():
    rng = torch.Generator().manual_seed(0)
    y = torch.arange(300) % 3
    centres = torch.randn(3, 16, generator=rng) * 3
    x = centres[y] + torch.randn(300, 16, generator=rng)
    classifier = LinearClassifier(x[:150], y[:150], 3)
    assert accuracy(classifier.predict(x[150:]), y[150:]) > 0.95
    noise = torch.randn(300, 16, generator=rng)
    blind = LinearClassifier(noise[:150], y[:150], 3)
    assert accuracy(blind.predict(noise[150:]), y[150:]) < 0.5


CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, CUDA])])
def test_classifier_is_of_the_kind_and_on_the_device_of_its_features(device):
    x = torch.eye(3, dtype=torch.float64, device=device).repeat(20, 1)
    y = torch.arange(60) % 3
    classifier = LinearClassifier(x, y, 3)
    assert (classifier.weight.dtype, classifier.weight.device) == (x.dtype, x.device)
    assert accuracy(classifier.predict(x), y) == accuracy(classifier.predict(x), y.to(device)) == 1
