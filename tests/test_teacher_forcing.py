"""Teacher-forced prediction (Sec. 3.2): one pass equals asking position by position."""

import math

import pytest
import torch

from semvq.generators.ar import ARConfig, ARTransformer
from semvq.generators.nar import NARConfig
from semvq.probe.teacher_forcing import predict

K = 11


def tiny(num_classes: int = 0) -> ARTransformer:
    torch.manual_seed(0)
    return ARConfig(
        num_layers=2, width=16, num_heads=2, num_codes=K, grid_height=3, grid_width=4,
        num_classes=num_classes,
    ).build()  # fmt: skip


def some_codes() -> torch.Tensor:
    return torch.randint(0, K, (5, 3, 4), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("num_classes", [0, 4])
def test_one_pass_equals_stepwise_argmax_with_the_true_context(num_classes):
    generator, codes = tiny(num_classes), some_codes()
    classes = torch.tensor([0, 3, 2, 1, 0]) if num_classes else None
    found = predict(generator, codes, classes)
    generator.eval()
    cache, previous, flat = generator.new_cache(5), None, codes.flatten(1)
    with torch.no_grad():
        for i in range(12):
            logits = generator.step(previous, cache, classes)
            previous = flat[:, i]  # the true code, not the predicted one
            assert torch.equal(found.codes.flatten(1)[:, i], logits.argmax(-1))
            nats = -logits.log_softmax(-1).gather(1, flat[:, i : i + 1])[:, 0]
            assert torch.allclose(found.cross_entropy.flatten(1)[:, i], nats, atol=1e-5)


def test_shapes_and_agreement_with_the_evaluation_loss():
    generator, codes = tiny(), some_codes()
    found = predict(generator, codes)
    assert found.codes.shape == found.correct.shape == found.cross_entropy.shape == (5, 3, 4)
    assert found.codes.dtype == torch.int64 and found.correct.dtype == torch.bool
    assert torch.equal(found.correct, found.codes == codes)
    assert float(found.cross_entropy.mean()) == pytest.approx(
        float(generator.evaluation_loss(codes))
    )
    assert not found.cross_entropy.requires_grad


def test_dropout_is_off_and_the_mode_comes_back():
    generator, codes = tiny().train(), some_codes()
    assert torch.equal(
        predict(generator, codes).cross_entropy, predict(generator, codes).cross_entropy
    )
    assert generator.training


def test_any_callable_will_do():
    codes = torch.tensor([[[0, 1], [2, 1]]])

    def logits(codes: torch.Tensor, classes: torch.Tensor | None) -> torch.Tensor:
        return torch.tensor([0.0, math.log(2.0), 0.0]).expand(1, 4, 3)

    found = predict(logits, codes)
    assert found.codes.tolist() == [[[1, 1], [1, 1]]]
    assert found.correct.tolist() == [[[False, True], [False, True]]]
    expected = torch.tensor([[[4.0, 2.0], [4.0, 2.0]]]).log()
    assert torch.allclose(found.cross_entropy, expected)


def test_ties_go_to_the_lowest_code():
    found = predict(lambda codes, classes: torch.zeros(1, 4, 3), torch.zeros(1, 2, 2).long())
    assert found.codes.tolist() == [[[0, 0], [0, 0]]]


def test_what_it_refuses():
    nar = NARConfig(
        num_layers=1, width=8, num_heads=1, num_codes=K, grid_height=3, grid_width=4
    ).build()
    with pytest.raises(ValueError, match="expected an AR generator, found NARTransformer"):
        predict(nar, some_codes())
    with pytest.raises(ValueError, match=r"expected codes \(B, 3, 4\)"):
        predict(tiny(), some_codes().transpose(1, 2))
    with pytest.raises(ValueError, match="expected codes below 11, found 0 to 12"):
        predict(tiny(), torch.tensor([[0, 1, 2, 12]]).expand(1, 3, 4))
