"""Masked prediction: what is hidden is fixed per image, and shown codes stay as they are."""

import math

import pytest
import torch

from semvq.generators.ar import ARConfig
from semvq.generators.nar import NARConfig, NARTransformer
from semvq.probe.masked import MASKED, RATIOS, predict_masked, random_masks

K = 11
GRID = (3, 4)


def tiny(num_classes: int = 0) -> NARTransformer:
    torch.manual_seed(0)
    return NARConfig(
        num_layers=2, width=16, num_heads=2, num_codes=K, grid_height=3, grid_width=4,
        num_classes=num_classes,
    ).build()  # fmt: skip


def some_codes(num: int = 5) -> torch.Tensor:
    return torch.randint(0, K, (num, *GRID), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("ratio", RATIOS)
def test_a_share_of_every_image_is_masked_and_differs_between_images(ratio):
    masks = random_masks(50, 256, ratio, seed=0)
    assert (masks.sum(1) == round(256 * ratio)).all()
    if ratio < 1:
        assert len(masks.unique(dim=0)) == 50
    else:
        assert masks.all()


def test_masks_are_a_function_of_seed_image_and_ratio():
    whole = random_masks(10, 64, 0.5, seed=3)
    assert torch.equal(random_masks(4, 64, 0.5, seed=3, first_index=6), whole[6:])
    assert not torch.equal(random_masks(10, 64, 0.5, seed=4), whole)
    smaller = random_masks(10, 64, 0.25, seed=3)
    assert (whole | ~smaller).all(), "the smaller mask lies within the larger one"
    assert random_masks(1, 12, 0.01, seed=0).sum() == 1


def test_masked_positions_are_close_to_uniform():
    counts = random_masks(4000, 16, 0.25, seed=1).sum(0).double()
    # binomial of 4000 x 0.25: deviation 27
    assert (counts - 1000).abs().max() < 4 * 27.4


@pytest.mark.parametrize("ratio", RATIOS)
def test_shown_codes_are_untouched_and_hidden_ones_are_the_models(ratio):
    model, codes = tiny(), some_codes()
    found, masked = predict_masked(model, codes, None, ratio, seed=2)
    assert torch.equal(masked.flatten(1), random_masks(5, 12, ratio, 2))
    assert torch.equal(found.codes[~masked], codes[~masked])
    model.eval()
    with torch.no_grad():
        scores = model(codes.flatten(1).masked_fill(masked.flatten(1), model.mask_code))
    assert torch.equal(found.codes[masked], scores.argmax(-1).view_as(codes)[masked])
    nats = -scores.log_softmax(-1).gather(-1, codes.flatten(1).unsqueeze(-1)).view(5, *GRID)
    assert torch.allclose(found.cross_entropy[masked], nats[masked], atol=1e-5)
    assert (found.cross_entropy[~masked] == 0).all() and (found.entropy[~masked] == 0).all()
    assert found.correct[~masked].all() and found.in_top5[~masked].all()
    assert (found.confidence[~masked] == 1).all()
    assert torch.equal(found.correct, found.codes == codes)


def test_hidden_codes_never_reach_the_model():
    model, codes = tiny(), some_codes()
    first, masked = predict_masked(model, codes, None, 0.5, seed=0)
    changed = torch.where(masked, (codes + 1) % K, codes)
    second, _ = predict_masked(model, changed, None, 0.5, seed=0)
    assert torch.equal(first.codes[masked], second.codes[masked])
    assert torch.equal(first.entropy, second.entropy)
    assert not torch.equal(first.cross_entropy, second.cross_entropy)


def test_at_ratio_1_the_class_alone_decides():
    model, codes = tiny(num_classes=3), some_codes()
    with torch.no_grad():
        for weight in (*model.blocks.parameters(), model.table.weight):
            weight.mul_(30)  # a fresh model hardly listens to its class
    found, masked = predict_masked(model, codes, torch.tensor([0, 1, 0, 2, 1]), 1.0, seed=0)
    assert masked.all()
    assert torch.allclose(found.entropy[0], found.entropy[2], rtol=0, atol=1e-6)
    assert (found.entropy[0] - found.entropy[1]).abs().max() > 0.01


def test_an_images_figures_do_not_depend_on_its_batch():
    model, codes = tiny(), some_codes()
    whole, masked = predict_masked(model, codes, None, 0.5, seed=7)
    for i in range(5):
        alone, mask = predict_masked(model, codes[[i]], None, 0.5, seed=7, first_index=i)
        assert torch.equal(mask[0], masked[i])
        for a, b in zip(alone, whole):
            if a.is_floating_point():
                assert torch.allclose(a[0], b[i], rtol=0, atol=1e-6)
            else:
                assert torch.equal(a[0], b[i])


def test_dropout_is_off_and_the_mode_comes_back():
    model, codes = tiny().train(), some_codes()
    a, b = (predict_masked(model, codes, None, 0.5)[0] for _ in range(2))
    assert torch.equal(a.cross_entropy, b.cross_entropy) and model.training


def test_any_callable_will_do():
    given = []

    def logits(codes, classes):
        given.append(codes)
        return torch.tensor([0.0, math.log(2.0), 0.0]).expand(2, 4, 3)

    codes = torch.tensor([[[0, 1], [2, 1]], [[2, 2], [2, 2]]])
    found, masked = predict_masked(logits, codes, None, 0.5)
    assert torch.equal(given[0] == MASKED, masked.flatten(1))
    assert torch.equal(given[0][~masked.flatten(1)], codes[~masked])
    assert (found.codes[masked] == 1).all()
    expected = torch.where(codes[masked] == 1, math.log(2), math.log(4))
    assert torch.allclose(found.cross_entropy[masked], expected)


def test_what_it_refuses():
    codes = some_codes()
    causal = ARConfig(
        num_layers=1, width=8, num_heads=1, num_codes=K, grid_height=3, grid_width=4
    ).build()
    with pytest.raises(ValueError, match="expected a NAR generator, found ARTransformer"):
        predict_masked(causal, codes, None, 0.5)
    for ratio in (0.0, -0.5, 1.01, math.nan):
        with pytest.raises(ValueError, match=r"expected a share in \(0, 1\]"):
            predict_masked(tiny(), codes, None, ratio)
    with pytest.raises(ValueError, match=r"expected codes \(B, 3, 4\)"):
        predict_masked(tiny(), codes.transpose(1, 2), None, 0.5)
    with pytest.raises(ValueError, match="expected codes below 11"):
        predict_masked(tiny(), codes + 1, None, 0.5)
