"""Sampling: schedules, truncation against brute force, guidance, independence of the batch."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from semvq.generators.ar import ARConfig
from semvq.generators.base import Generator
from semvq.generators.nar import NARConfig
from semvq.generators.noise import AR_CODES, Noise
from semvq.generators.sampling import draw, progress_of, ranks, truncate
from semvq.generators.sampling_nar import cosine, mask_counts, sample_nar

K, MASK = 13, 13


def tiny(kind: type[ARConfig] | type[NARConfig], num_classes: int = 3) -> Generator:
    torch.manual_seed(0)
    config = kind(
        num_layers=2, width=16, num_heads=2, num_codes=K, grid_height=4, grid_width=3,
        num_classes=num_classes, conditioning_dropout=0.1 if num_classes else 0.0,
    )  # fmt: skip
    generator = config.build().eval()
    for parameter in generator.parameters():
        parameter.data.mul_(3)  # far from uniform, so that a wrong input shows
    return generator


# Schedules


def test_mask_counts_of_the_paper_scale():
    counts = mask_counts(256, 12)
    assert counts == tuple(
        math.floor(256 * math.cos(math.pi / 2 * t / 12) + 1e-9) for t in range(1, 13)
    )
    assert counts[7] == 128 and counts[-1] == 0


@pytest.mark.parametrize("schedule", [cosine, lambda t: 1 - t, lambda t: 1.0, lambda t: 0.0])
def test_every_step_fixes_a_position_and_the_last_leaves_none(schedule):
    for length, steps in itertools.product((1, 2, 3, 7, 16, 64), (1, 2, 5, 8, 16)):
        counts = mask_counts(length, steps, schedule)
        assert len(counts) == steps and counts[-1] == 0
        for before, after in itertools.pairwise((length, *counts)):
            assert after < before or before == after == 0
        if steps <= length:
            assert all(c >= 1 for c in counts[:-1])


def test_mask_counts_are_floored_but_not_by_rounding():
    assert mask_counts(10, 10, lambda t: 1 - t) == tuple(range(9, -1, -1))
    assert mask_counts(16, 4) == (14, 11, 6, 0)
    with pytest.raises(ValueError, match="steps"):
        mask_counts(16, 0)


# Truncation and drawing


def brute_top_k(row: list[float], k: int) -> set[int]:
    return set(sorted(range(len(row)), key=lambda c: (-row[c], c))[:k])


def brute_top_p(row: list[float], p: float) -> set[int]:
    weights = [math.exp(v) for v in row]
    kept: set[int] = set()
    mass = 0.0
    for code in sorted(range(len(row)), key=lambda c: (-row[c], c)):
        if mass / sum(weights) >= p:
            break
        kept.add(code)
        mass += weights[code]
    return kept


def kept(logits: Tensor) -> list[set[int]]:
    return [set(torch.isfinite(row).nonzero().flatten().tolist()) for row in logits]


@pytest.mark.parametrize("k", [1, 2, 5, 12, 13, 40])
def test_top_k_against_brute_force(k):
    logits = torch.randn(50, K, generator=torch.Generator().manual_seed(k)).mul(4).round()  # ties
    found = truncate(logits, top_k=k)
    assert kept(found) == [brute_top_k(row, k) for row in logits.tolist()]
    inside = torch.isfinite(found)
    assert torch.equal(found[inside], logits[inside])


@pytest.mark.parametrize("p", [1e-6, 0.1, 0.5, 0.9, 0.999, 1.0])
def test_top_p_against_brute_force(p):
    logits = torch.randn(50, K, generator=torch.Generator().manual_seed(1)).mul(2)
    assert kept(truncate(logits, top_p=p)) == [brute_top_p(row, p) for row in logits.tolist()]


def test_top_p_counts_the_mass_that_top_k_left():
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    assert kept(truncate(logits, top_p=0.5)) == [{0, 1}]
    assert kept(truncate(logits, top_k=2, top_p=0.5)) == [{0}]  # 0.4 of the remaining 0.7


def test_truncation_leaves_its_input_alone_and_refuses_nonsense():
    logits = torch.randn(2, 3, K)
    copy = logits.clone()
    assert truncate(logits, top_k=2, top_p=0.3).shape == (2, 3, K)
    assert torch.equal(logits, copy) and truncate(logits) is logits
    for wrong in ({"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.5}):
        with pytest.raises(ValueError, match="expected"):
            truncate(logits, **wrong)


def test_temperature_zero_is_the_best_code_and_a_high_one_is_noise():
    logits, noise = torch.randn(20, K), Noise.consecutive(0, 0, 20)
    gumbel = noise.gumbel(AR_CODES, 0, torch.arange(K))
    assert torch.equal(draw(logits, gumbel, temperature=0), logits.argmax(-1))
    assert torch.equal(draw(logits, gumbel, top_k=1), logits.argmax(-1))
    assert torch.equal(draw(logits, gumbel, temperature=1e6), gumbel.argmax(-1))
    with pytest.raises(ValueError, match="temperature"):
        draw(logits, gumbel, temperature=-1)


# Autoregressive


def test_ar_greedy_equals_a_loop_over_full_passes():
    generator = tiny(ARConfig)
    classes = torch.tensor([2, 0])
    codes = torch.zeros(2, 12, dtype=torch.int64)
    with torch.no_grad():
        for i in range(12):
            codes[:, i] = generator(codes[:, : i + 1], classes)[:, i].argmax(-1)
    found = generator.sample(2, classes, temperature=0.0)
    assert torch.equal(found.flatten(1), codes)


# Non-autoregressive


class Recorder:
    """Fixed logits; remembers the codes it was shown."""

    def __init__(self, num: int, length: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.logits = torch.randn(num, length, K + 1, generator=generator)
        self.logits[..., MASK] = 100.0  # what a model could wrongly say: the mask token itself
        self.seen: list[Tensor] = []
        self.progress: list[float] = []

    def __call__(self, codes: Tensor, progress: float) -> Tensor:
        self.seen.append(codes.clone())
        self.progress.append(progress)
        return self.logits


@pytest.mark.parametrize("steps", [1, 4, 12, 16, 20])
def test_nar_masks_follow_the_schedule_and_none_is_left(steps):
    model = Recorder(5, 16)
    codes = sample_nar(model, 16, MASK, Noise.consecutive(0, 0, 5), steps=steps)
    assert int(codes.min()) >= 0 and int(codes.max()) < K
    found = [tuple((seen == MASK).sum(1).tolist()) for seen in model.seen]
    expected = [c for c in (16, *mask_counts(16, steps)) if c > 0]
    assert found == [(c,) * 5 for c in expected]


def test_nar_fixed_codes_stay_fixed():
    model = Recorder(5, 16)
    codes = sample_nar(model, 16, MASK, Noise.consecutive(0, 0, 5), steps=6)
    for before, after in itertools.pairwise([*model.seen, codes]):
        fixed = before != MASK
        assert torch.equal(before[fixed], after[fixed])


def test_nar_without_chance_keeps_the_surest_codes():
    model = Recorder(3, 16)
    noise = Noise.consecutive(0, 0, 3)
    sample_nar(model, 16, MASK, noise, steps=4, choice_temperature=0.0, temperature=0.0)
    best = model.logits[..., :K].log_softmax(-1).max(-1).values
    surest = ranks(best) >= mask_counts(16, 4)[0]
    assert torch.equal(model.seen[1] != MASK, surest)


def test_nar_choice_temperature_adds_chance_that_dies_out():
    choices = []
    for temperature in (0.0, 100.0):
        model = Recorder(1, 16)
        noise = Noise.consecutive(0, 0, 1)
        sample_nar(model, 16, MASK, noise, steps=4, temperature=0, choice_temperature=temperature)
        choices.append(model.seen[1] != MASK)
    assert not torch.equal(*choices)


def test_nar_known_codes_are_kept():
    generator = tiny(NARConfig)
    known = torch.full((1, 4, 3), -1)
    known[0, :2] = 7
    codes = generator.sample(4, torch.tensor([0, 1, 2, 0]), known=known)
    assert bool((codes[:, :2] == 7).all()) and int(codes.max()) < K
    everything = torch.randint(0, K, (4, 4, 3))
    assert torch.equal(
        generator.sample(4, torch.zeros(4, dtype=torch.int64), known=everything), everything
    )
    with pytest.raises(ValueError, match="below 13, found 13"):
        generator.sample(4, torch.zeros(4, dtype=torch.int64), known=torch.full_like(known, MASK))
    with pytest.raises(ValueError, match="expected shape"):
        generator.sample(4, torch.zeros(4, dtype=torch.int64), known=known.expand(2, -1, -1))


# Both


def test_progress_runs_from_zero_to_one():
    model = Recorder(2, 16)
    sample_nar(model, 16, MASK, Noise.consecutive(0, 0, 2), steps=5)
    assert model.progress == [0, 0.25, 0.5, 0.75, 1]
    assert [progress_of(i, 3) for i in range(3)] == [0, 0.5, 1] and progress_of(0, 1) == 1


@pytest.mark.parametrize("kind", [ARConfig, NARConfig])
def test_sample_i_does_not_depend_on_its_batch(kind):
    generator = tiny(kind)
    classes = torch.arange(8) % 3
    together = generator.sample(8, classes, seed=4)
    alone = [generator.sample(1, classes[i : i + 1], seed=4, first_index=i) for i in range(8)]
    assert together.shape == (8, 4, 3) and together.dtype == torch.int64
    assert torch.equal(together, torch.cat(alone))
    assert not torch.equal(together, generator.sample(8, classes, seed=5))


@pytest.mark.parametrize("kind", [ARConfig, NARConfig])
def test_guidance_of_one_is_conditional_and_others_are_not(kind):
    generator = tiny(kind)
    classes = torch.arange(8) % 3
    plain = generator.sample(8, classes)
    assert torch.equal(plain, generator.sample(8, classes, guidance=1.0))
    assert torch.equal(generator.sample(8), generator.sample(8, classes, guidance=0.0))
    assert not torch.equal(plain, generator.sample(8, classes, guidance=6.0))


@pytest.mark.parametrize("kind", [ARConfig, NARConfig])
def test_sampling_leaves_no_trace(kind):
    generator = tiny(kind, num_classes=0).train()
    generator.blocks[0].eval()
    modes = [part.training for part in generator.modules()]
    state = torch.get_rng_state()
    codes = generator.sample(3, seed=1)  # no dropout, though the model is in train mode
    assert [part.training for part in generator.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(codes, generator.eval().sample(3, seed=1))
    assert not codes.requires_grad


def test_users_mistakes_are_named():
    generator = tiny(ARConfig)
    with pytest.raises(ValueError, match="temperature.*found 'steps'"):
        generator.sample(1, torch.tensor([0]), steps=4)
    with pytest.raises(ValueError, match="from 0 to 2, found 0 to 3"):
        generator.sample(2, torch.tensor([0, 3]))
    with pytest.raises(ValueError, match="expected 2 classes"):
        generator.sample(2, torch.tensor([0]))
    with pytest.raises(ValueError, match="at least 1 sample"):
        generator.sample(0)
    with pytest.raises(ValueError, match="guidance needs"):
        tiny(ARConfig, num_classes=0).sample(1, guidance=2.0)
    with pytest.raises(ValueError, match="expected no classes"):
        tiny(NARConfig, num_classes=0).sample(1, torch.tensor([0]))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", [ARConfig, NARConfig])
def test_cuda_draws_the_codes_of_the_cpu(kind):
    codes = torch.arange(4096)
    on_cpu = Noise.consecutive(3, 0, 64).gumbel(AR_CODES, 5, codes)
    on_cuda = Noise.consecutive(3, 0, 64, "cuda").gumbel(AR_CODES, 5, codes.cuda())
    # The words are equal; the two devices' float64 logs may differ by a unit in the last place.
    assert torch.allclose(on_cuda.cpu(), on_cpu, rtol=1e-6, atol=1e-6)
    generator = tiny(kind)
    found = generator.sample(8, torch.arange(8) % 3)
    assert torch.equal(generator.cuda().sample(8, torch.arange(8) % 3).cpu(), found)
