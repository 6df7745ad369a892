"""GAN losses, R1, the adaptive weight and the two discriminators."""

import math

import pytest
import torch
from torch import Tensor, nn

from semvq.kernels.blur import blur_by_products
from semvq.losses.adversarial import (
    adaptive_weight,
    discriminator_loss,
    generator_loss,
    r1_penalty,
    with_gradient,
)
from semvq.losses.discriminators import (
    BLUR,
    PatchGANConfig,
    StyleGANDiscriminatorConfig,
    blur,
)

SMALL_STYLE = StyleGANDiscriminatorConfig(channel_base=128, max_channels=16)
SMALL_PATCH = PatchGANConfig(channels=8, num_layers=2)


def test_losses_by_hand():
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-0.5, -3.0])
    assert discriminator_loss("hinge", real, fake).item() == pytest.approx((0.25 + 0.25) / 2)
    assert generator_loss("hinge", fake).item() == pytest.approx(1.75)
    both = [math.log1p(math.exp(-2)), math.log1p(math.exp(-0.5))]
    fakes = [math.log1p(math.exp(-0.5)), math.log1p(math.exp(-3))]
    expected = sum(both) / 2 + sum(fakes) / 2
    assert discriminator_loss("logistic", real, fake).item() == pytest.approx(expected)
    expected = (math.log1p(math.exp(0.5)) + math.log1p(math.exp(3))) / 2
    assert generator_loss("logistic", fake).item() == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["hinge", "logistic"])
def test_players_pull_in_opposite_directions(kind):
    fake = torch.zeros(3, 1, requires_grad=True)
    (at_generator,) = torch.autograd.grad(generator_loss(kind, fake), fake)
    loss = discriminator_loss(kind, torch.zeros(3, 1), fake)
    (at_discriminator,) = torch.autograd.grad(loss, fake)
    assert (at_generator < 0).all() and (at_discriminator > 0).all()
    for extreme in (1e4, -1e4):
        logits = torch.full((2, 1), extreme)
        assert generator_loss(kind, logits).isfinite()
        assert discriminator_loss(kind, logits, -logits).isfinite()


def test_r1_is_the_squared_gradient_and_trains_the_discriminator():
    images = torch.randn(3, 3, 4, 4)
    weight = torch.randn(3, 4, 4, requires_grad=True)
    penalty = r1_penalty(lambda x: (weight * x).sum((1, 2, 3)), images)
    torch.testing.assert_close(penalty, weight.square().sum())
    (gradient,) = torch.autograd.grad(penalty, weight)
    torch.testing.assert_close(gradient, 2 * weight)
    assert not images.requires_grad


@pytest.mark.parametrize("config", [SMALL_STYLE, SMALL_PATCH])
def test_r1_reaches_every_layer_of_the_discriminators(config):
    torch.manual_seed(0)
    model = config.build(16)
    r1_penalty(model, torch.randn(2, 3, 16, 16)).backward()
    weights = [n for n, p in model.named_parameters() if n.endswith("weight") and p.ndim == 4]
    gradients = dict(model.named_parameters())
    assert weights and all(gradients[n].grad.abs().sum() > 0 for n in weights)


def decoder() -> tuple[nn.Module, nn.Conv2d, Tensor]:
    torch.manual_seed(0)
    first, last = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)
    return nn.Sequential(first, nn.SiLU(), last), last, torch.randn(2, 4, 8, 8)


def test_adaptive_weight_is_exact():
    model, last, x = decoder()
    target = torch.randn(2, 3, 8, 8)
    judge = nn.Conv2d(3, 1, 3)

    def losses(reconstruction: Tensor) -> tuple[Tensor, Tensor]:
        return (reconstruction - target).abs().mean(), -judge(reconstruction).mean()

    # The definition: gradients of both losses at the last layer, by separate backward passes.
    norms = []
    for index in range(2):
        loss = losses(model(x))[index]
        norms.append(torch.autograd.grad(loss, last.weight)[0].norm())
    expected = 0.8 * norms[0] / (norms[1] + 1e-4)
    rec, gan = losses(model(x))
    (rec + expected * gan).backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    judge.zero_grad()

    reconstruction = model(x)
    rec, gan = losses(reconstruction)
    balanced = adaptive_weight(rec, gan, reconstruction, last.weight)
    torch.testing.assert_close(balanced.weight, expected)
    assert last.weight.grad is None and judge.weight.grad is None
    value = rec.detach() + 3
    loss = with_gradient(value, reconstruction, balanced.gradient)
    assert torch.equal(loss, value)
    loss.backward()
    for parameter, gradient in zip(model.parameters(), gradients):
        torch.testing.assert_close(parameter.grad, gradient)


def test_adaptive_weight_with_a_zero_gradient_on_either_side():
    model, last, x = decoder()
    for rec_factor, gan_factor, expected in ((0, 1, 0.0), (1, 0, 8000.0), (0, 0, 0.0)):
        reconstruction = model(x)
        losses = (rec_factor * reconstruction.square().mean(), gan_factor * reconstruction.mean())
        balanced = adaptive_weight(*losses, reconstruction, last.weight)
        assert balanced.weight.item() <= 8000.0 and balanced.weight.isfinite()
        assert expected == 8000.0 or balanced.weight == expected
        assert balanced.gradient.isfinite().all()
    reconstruction = model(x)
    constant = torch.zeros(())
    balanced = adaptive_weight(reconstruction.mean(), constant, reconstruction, last.weight)
    assert balanced.gradient.isfinite().all()


def test_adaptive_weight_is_clamped_gated_and_global():
    model, last, x = decoder()

    def weigh(**options) -> Tensor:
        reconstruction = model(x)
        losses = (1e6 * reconstruction.square().mean(), 1e-9 * reconstruction.mean())
        return adaptive_weight(*losses, reconstruction, last.weight, **options).weight

    assert weigh().item() == pytest.approx(8000)
    assert weigh(gate=0.0) == 0
    seen = []
    weigh(all_mean=lambda g: seen.append(g.shape) or g)
    assert seen == [last.weight.shape] * 2


@pytest.mark.parametrize("config", [SMALL_STYLE, SMALL_PATCH, PatchGANConfig(8, 2, "none")])
def test_discriminators_judge_each_image_alone(config):
    torch.manual_seed(0)
    model = config.build(16)
    assert not [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    images = torch.randn(4, 3, 16, 16)
    together = model(images)
    alone = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    together.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_stylegan_starts_with_logits_of_order_one():
    torch.manual_seed(0)
    with torch.no_grad():
        model = StyleGANDiscriminatorConfig(1024, 64).build(32)
        logits = model(torch.randn(64, 3, 1, 1).expand(64, 3, 32, 32))
    assert logits.shape == (64, 1) and 0.05 < logits.std() < 5


def test_minibatch_deviation_depends_on_its_own_group_only():
    torch.manual_seed(0)
    model = StyleGANDiscriminatorConfig(128, 16, minibatch_group=2).build(8)
    images = torch.randn(4, 3, 8, 8)
    together = model(images)
    torch.testing.assert_close(together, torch.cat([model(h) for h in images.chunk(2)]))
    changed = model(torch.cat([images[:1], images[2:3], images[2:]]))
    assert not torch.allclose(changed[0], together[0])
    torch.testing.assert_close(changed[2:], together[2:])
    with pytest.raises(ValueError, match="minibatch_group = 2, found 3"):
        model(images[:3])


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (1, 2, 6, 10), (2, 1, 4, 4)])
@pytest.mark.parametrize("padding, stride", [(2, 1), (1, 2)])
def test_blur_by_products_is_the_convolution_with_its_derivatives(shape, padding, stride):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
    found = []
    for y in (
        blur(x, padding=padding, stride=stride),
        blur_by_products(x, BLUR, padding, stride),
    ):
        (slope,) = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
        (curvature,) = torch.autograd.grad(slope.square().sum(), x)
        found.append((y, slope, curvature))
    for a, b in zip(*found):
        assert a.shape == b.shape and torch.allclose(a, b, rtol=1e-12, atol=1e-12)


def test_blur_keeps_a_constant_and_halves_the_side():
    x = torch.ones(1, 2, 8, 8)
    down = blur(x, padding=1, stride=2)
    assert down.shape == (1, 2, 4, 4)
    torch.testing.assert_close(down[:, :, 1:-1, 1:-1], torch.ones(1, 2, 2, 2))


def test_resolutions_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="power of two"):
        SMALL_STYLE.build(24)
    with pytest.raises(ValueError, match="at least 24"):
        PatchGANConfig().build(16)
    with pytest.raises(ValueError, match="expected images of 16 px"):
        SMALL_STYLE.build(16)(torch.zeros(1, 3, 8, 8))
    assert PatchGANConfig().build(32)(torch.zeros(1, 3, 32, 32)).shape == (1, 1, 2, 2)


@pytest.mark.parametrize(("norm", "count"), [("none", 2_764_737), ("group", 2_765_633)])
def test_patchgan_is_the_usual_size(norm, count):
    with torch.device("meta"):
        model = PatchGANConfig(norm=norm).build(256)
    assert sum(p.numel() for p in model.parameters()) == count


def test_stylegan_widths_follow_the_side():
    with torch.device("meta"):
        model = StyleGANDiscriminatorConfig().build(256)
    assert model.from_rgb.weight.shape[0] == 64
    widths = [block.conv2.weight.shape[0] for block in model.blocks]
    assert widths == [128, 256, 512, 512, 512, 512]
