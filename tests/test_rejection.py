"""Rejection: the best of the candidates, each with noise of its own."""

import pytest
import torch

from semvq.generators.ar import ARConfig
from semvq.generators.nar import NARConfig
from semvq.generators.rejection import (
    CANDIDATE_STRIDE,
    MAX_CANDIDATES,
    candidate_index,
    classifier_confidence,
    keep_best,
    log_likelihood,
)
from tests.test_sampling import tiny

KINDS = pytest.mark.parametrize("kind", [ARConfig, NARConfig])
CLASSES = torch.arange(6) % 3


def drawer(generator, start: int = 0, num: int = 6):
    def draw(candidate: int) -> torch.Tensor:
        index = candidate_index(start, num, candidate)
        return generator.sample(num, CLASSES[start : start + num], 7, first_index=index)

    return draw


@KINDS
def test_one_candidate_is_plain_sampling(kind):
    generator = tiny(kind)
    kept = keep_best(drawer(generator), lambda codes: codes.float().mean((1, 2)), 6, 1)
    assert torch.equal(kept.samples, generator.sample(6, CLASSES, 7))
    assert kept.candidates.tolist() == [0] * 6


@KINDS
def test_the_choice_is_the_argmax(kind):
    generator = tiny(kind)
    draw = drawer(generator)

    def score(codes: torch.Tensor) -> torch.Tensor:
        return log_likelihood(generator, codes, CLASSES)

    kept = keep_best(draw, score, 6, 5)
    everything = torch.stack([draw(c) for c in range(5)])
    scores = torch.stack([score(codes) for codes in everything])
    best = scores.argmax(0)
    assert torch.equal(kept.candidates, best) and len(set(best.tolist())) > 1
    assert torch.equal(kept.scores, scores.amax(0))
    assert torch.equal(kept.samples, everything[best, torch.arange(6)])


@KINDS
def test_candidates_depend_on_seed_index_and_number_alone(kind):
    generator = tiny(kind)
    together = drawer(generator)
    for candidate in (0, 1, 3):
        apart = [drawer(generator, i, 1)(candidate) for i in range(6)]
        assert torch.equal(together(candidate), torch.cat(apart))
    drawn = [tuple(c.flatten().tolist()) for k in range(4) for c in together(k)]
    assert len(set(drawn)) == 24  # no two share their noise


def test_ties_go_to_the_earliest_and_no_number_loses():
    scores = iter(torch.tensor([[1.0, torch.nan, 2.0], [1.0, -5.0, torch.nan], [0.0, -6.0, 3.0]]))
    kept = keep_best(lambda c: torch.full((3, 2, 2), c), lambda _: next(scores), 3, 3)
    assert kept.candidates.tolist() == [0, 1, 2] and kept.scores.tolist() == [1.0, -5.0, 3.0]
    assert kept.samples[:, 0, 0].tolist() == [0, 1, 2]


def test_indices_of_candidates_fit_and_never_meet():
    assert candidate_index(3, 2, 0) == 3
    assert candidate_index(3, 2, 5) == 3 + 5 * CANDIDATE_STRIDE
    assert candidate_index(CANDIDATE_STRIDE, 1, 0) == CANDIDATE_STRIDE  # plain sampling goes on
    assert MAX_CANDIDATES * CANDIDATE_STRIDE == 2**32
    with pytest.raises(ValueError, match="below 16777216, found 16777216"):
        candidate_index(CANDIDATE_STRIDE - 1, 2, 1)
    for candidates in (0, MAX_CANDIDATES + 1):
        with pytest.raises(ValueError, match=f"from 1 to 256 candidates, found {candidates}"):
            keep_best(lambda c: torch.zeros(1), lambda x: x, 1, candidates)


@KINDS
@pytest.mark.parametrize("num_classes", [0, 3])
def test_likelihood_is_minus_each_images_share_of_the_evaluation_loss(kind, num_classes):
    generator = tiny(kind, num_classes).train()
    classes = CLASSES if num_classes else None
    codes = torch.randint(0, 13, (6, 4, 3), generator=torch.Generator().manual_seed(0))
    found = log_likelihood(generator, codes, classes)
    for i in range(6):
        one = None if classes is None else classes[i : i + 1]
        expected = -float(generator.evaluation_loss(codes[i : i + 1], one))
        assert float(found[i]) == pytest.approx(expected, abs=1e-5)
    assert generator.training and found.shape == (6,) and not found.requires_grad


def test_confidence_is_the_largest_probability_at_the_classifiers_size():
    seen = []

    def classifier(images: torch.Tensor) -> torch.Tensor:
        seen.append(images)
        return torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.2, 0.6]]).log() + 4

    found = classifier_confidence(classifier, torch.randn(2, 3, 16, 16) * 3, size=32)
    assert torch.allclose(found, torch.tensor([0.6, 0.6]))
    assert seen[0].shape == (2, 3, 32, 32) and float(seen[0].abs().max()) <= 1
