"""Guidance: its formula, the ramps' ends, and a constant scale that changes nothing."""

import pytest
import torch

from semvq.generators.ar import ARConfig
from semvq.generators.guidance import SCHEDULES, constant, led, linear, named_schedule
from semvq.generators.nar import NARConfig
from tests.test_sampling import K, tiny

KINDS = pytest.mark.parametrize("kind", [ARConfig, NARConfig])


def test_the_formula_at_the_schedules_scale():
    a, b = torch.randn(4, K), torch.randn(4, K)
    for progress, scale in ((0.0, 1.0), (0.5, 2.0), (1.0, 3.0)):
        assert linear(3.0)(progress) == scale
        assert torch.equal(led(torch.cat([a, b]), scale), b + scale * (a - b))
    assert torch.equal(led(torch.cat([a, b]), constant(0.0)(0.3)), b)


@pytest.mark.parametrize("scale", [0.0, 2.5, 7.0])
def test_ramps_lead_from_one_to_the_scale(scale):
    middle = (1 + scale) / 2
    for name in ("linear", "cosine"):
        ramp = named_schedule(name, scale)
        assert [ramp(0.0), ramp(1.0)] == [1.0, scale] and ramp(0.5) == pytest.approx(middle)
        values = [ramp(i / 20) for i in range(21)]
        assert values == sorted(values, reverse=scale < 1)
    assert {SCHEDULES["constant"](scale)(p) for p in (0.0, 0.3, 1.0)} == {scale}
    slow = named_schedule("cosine", scale)(0.1) - 1
    assert abs(slow) < abs(named_schedule("linear", scale)(0.1) - 1)


@KINDS
def test_a_ramp_starts_as_the_conditional_and_then_differs_from_both(kind):
    generator, classes = tiny(kind), torch.arange(16) % 3
    drawn = {
        name: generator.sample(16, classes, guidance=40.0, guidance_schedule=name).flatten(1)
        for name in SCHEDULES
    }
    if kind is ARConfig:  # the first position is the conditional one's: scale 1
        assert torch.equal(drawn["linear"][:, 0], generator.sample(16, classes).flatten(1)[:, 0])
    assert not torch.equal(drawn["linear"], drawn["constant"])
    assert not torch.equal(drawn["linear"], drawn["cosine"])
    assert not torch.equal(drawn["linear"], generator.sample(16, classes).flatten(1))


@KINDS
def test_mistakes(kind):
    generator, classes = tiny(kind), torch.tensor([0])
    with pytest.raises(ValueError, match="one of constant, linear, cosine; found 'steep'"):
        generator.sample(1, classes, guidance=3.0, guidance_schedule="steep")
    with pytest.raises(ValueError, match="other than 1 for 'linear'.*give a guidance"):
        generator.sample(1, classes, guidance_schedule="linear")
    with pytest.raises(ValueError, match="guidance needs"):
        tiny(kind, num_classes=0).sample(1, guidance=2.0, guidance_schedule="linear")
