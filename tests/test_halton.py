"""Halton order: a permutation that spreads, and a sampler that follows it."""

import itertools
from fractions import Fraction

import pytest
import torch

from semvq.generators.halton import halton_order, radical_inverse
from semvq.generators.nar import NARConfig
from semvq.generators.noise import Noise
from semvq.generators.sampling_nar import mask_counts, sample_nar
from tests.test_sampling import MASK, K, Recorder, tiny


def test_radical_inverse():
    found = [Fraction(*radical_inverse(i, 2)) for i in range(1, 8)]
    assert found == [Fraction(n, 8) for n in (4, 2, 6, 1, 5, 3, 7)]
    found = [Fraction(*radical_inverse(i, 3)) for i in range(1, 9)]
    assert found == [Fraction(n, 9) for n in (3, 6, 1, 4, 7, 2, 5, 8)]


@pytest.mark.parametrize("grid", [(1, 1), (1, 7), (4, 3), (8, 8), (16, 16), (12, 20), (32, 32)])
def test_every_position_comes_once(grid):
    assert sorted(halton_order(*grid)) == list(range(grid[0] * grid[1]))


def test_any_run_of_points_is_spread_over_the_image():
    """Cells of 2^a x 3^b: where they end on codes' edges, a run visits each of them once."""
    order = halton_order(16, 9)
    for parts in ((2, 3), (4, 3), (4, 9)):
        cells = [
            (p // 9 * parts[0] // 16, p % 9 * parts[1] // 9) for p in order[: parts[0] * parts[1]]
        ]
        assert sorted(cells) == list(itertools.product(range(parts[0]), range(parts[1])))


def test_the_first_codes_of_the_papers_grid():
    """16 x 16: rows 1/2, 1/4, 3/4, 1/8, columns 1/3, 2/3, 1/9, 4/9, rounded down."""
    first = [divmod(p, 16) for p in halton_order(16, 16)[:6]]
    assert first == [(8, 5), (4, 10), (12, 1), (2, 7), (10, 12), (6, 3)]
    apart = [abs(a - c) + abs(b - d) for (a, b), (c, d) in itertools.combinations(first, 2)]
    assert min(apart) == 4


@pytest.mark.parametrize("steps", [1, 4, 12, 16, 20])
def test_masks_follow_the_schedule_and_the_order(steps):
    order = halton_order(4, 4)
    model = Recorder(5, 16)
    codes = sample_nar(
        model, len(order), MASK, Noise.consecutive(0, 0, 5), order=order, steps=steps
    )
    assert int(codes.min()) >= 0 and int(codes.max()) < K
    expected = [c for c in (16, *mask_counts(16, steps)) if c > 0]
    assert [tuple((seen == MASK).sum(1).tolist()) for seen in model.seen] == [
        (c,) * 5 for c in expected
    ]
    for seen, left in zip(model.seen, expected, strict=True):
        masked = torch.tensor(sorted(order[16 - left :]))
        assert torch.equal((seen[0] == MASK).nonzero().flatten(), masked)
    for before, after in itertools.pairwise([*model.seen, codes]):
        fixed = before != MASK
        assert torch.equal(before[fixed], after[fixed])


def test_known_codes_are_passed_over():
    generator = tiny(NARConfig)
    known = torch.full((1, 4, 3), -1)
    known[0, :2] = 7
    codes = generator.sample(4, torch.tensor([0, 1, 2, 0]), known=known, order="halton")
    assert bool((codes[:, :2] == 7).all()) and int(codes.min()) >= 0 and int(codes.max()) < K
    order, model = halton_order(4, 3), Recorder(1, 12)
    noise = Noise.consecutive(0, 0, 1)
    sample_nar(model, len(order), MASK, noise, order=order, steps=6, known=known.flatten(1))
    missing = [p for p in order if p >= 6]
    for seen, fixed in zip(model.seen, range(6), strict=True):
        masked = sorted(missing[fixed:])
        assert (seen[0] == MASK).nonzero().flatten().tolist() == masked


def test_sample_i_does_not_depend_on_its_batch():
    generator, classes = tiny(NARConfig), torch.arange(6) % 3
    together = generator.sample(6, classes, seed=4, order="halton", steps=5)
    alone = [
        generator.sample(1, classes[i : i + 1], 4, first_index=i, order="halton", steps=5)
        for i in range(6)
    ]
    assert torch.equal(together, torch.cat(alone))
    assert not torch.equal(together, generator.sample(6, classes, seed=4, steps=5))


def test_confidence_is_the_default_and_mistakes_are_named():
    generator, classes = tiny(NARConfig), torch.tensor([0, 1])
    plain = generator.sample(2, classes)
    assert torch.equal(generator.sample(2, classes, order="confidence"), plain)
    assert torch.equal(generator.sample(2, classes, choice_temperature=4.5), plain)
    with pytest.raises(ValueError, match="expected none with order halton, found 4.5"):
        generator.sample(2, classes, order="halton", choice_temperature=4.5)
    with pytest.raises(ValueError, match="one of confidence, halton; found 'raster'"):
        generator.sample(2, classes, order="raster")
    with pytest.raises(ValueError, match="steps"):
        generator.sample(2, classes, order="halton", steps=0)
