"""Eq. 3: layer weights, the three forms, finite gradients, input sizes (reliability: Numerics)."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semvq.losses.perceptual import (
    LAYER_SETS,
    LOGIT,
    PerceptualConfig,
    resize,
    uncorrelated,
)

LOW = ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3")


class FakeVGG(nn.Module):
    """Five convolutions under VGG's names; remembers what it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        weights = torch.randn(5, 4, 4, 3, 3) / 4
        self.register_buffer("weights", weights, persistent=False)
        self.calls: list[tuple[tuple[str, ...], tuple[int, ...], bool, torch.dtype]] = []

    def forward(self, images: Tensor, layers: tuple[str, ...]) -> dict[str, Tensor]:
        self.calls.append((layers, images.shape, torch.is_grad_enabled(), images.dtype))
        x = F.pad(images, (0, 0, 0, 0, 0, 1))
        found = {}
        for name, weight in zip(LOW, self.weights):
            x = F.relu(F.conv2d(x, weight, padding=1))
            found[name] = x
        return {name: found[name] for name in layers}


class FakeClassifier(nn.Module):
    """Logits linear in the pooled image, a hundred times larger than activations."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.register_buffer("weight", torch.randn(10, 12) * 100, persistent=False)
        self.sizes: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        self.sizes.append(images.shape[-1])
        return F.adaptive_avg_pool2d(images, 2).flatten(1) @ self.weight.t()


LINEAR = {name: torch.rand(1, 4, 1, 1) for name in LOW}


def build(**settings):
    config = PerceptualConfig(**{"logits_size": None, **settings})
    return config.build(FakeVGG(), FakeClassifier(), LINEAR)


def pair(size: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    x = torch.rand(2, 2, 3, size, size, generator=generator) * 2 - 1
    return x[0].requires_grad_(), x[1]


def test_layer_sets_are_the_papers():
    assert LAYER_SETS["low"] == LOW and LAYER_SETS["sem"] == ("relu5_3", LOGIT)
    assert [len(LAYER_SETS[s]) for s in "ABCDE"] == [6, 5, 4, 3, 1]
    assert LAYER_SETS["D"] == ("relu4_3", "relu5_3", LOGIT) and LAYER_SETS["E"] == (LOGIT,)


@pytest.mark.parametrize(
    ("alpha", "expected"),
    [
        (1.0, {"relu5_3": 1.0, LOGIT: 1.0}),
        (0.0, dict.fromkeys(LOW, 1.0)),
        (0.4, {**dict.fromkeys(LOW[:4], 0.6), "relu5_3": 1.0, LOGIT: 0.4}),
    ],
)
def test_alpha_weights_layers_as_in_eq_3(alpha, expected):
    assert PerceptualConfig(alpha=alpha).layer_weights() == pytest.approx(expected)


def test_paper_form_is_eq_3():
    reconstruction, images = pair()
    vgg, classifier = FakeVGG(), FakeClassifier()
    found, logs = build(alpha=0.4)(reconstruction, images)
    ours, theirs = vgg(reconstruction, LOW), vgg(images, LOW)
    terms = {k: ((ours[k] - theirs[k]) ** 2).sum((1, 2, 3)) / ours[k][0].numel() for k in LOW}
    low = sum(terms[k].mean() for k in LOW)
    logit = ((classifier(reconstruction) - classifier(images)) ** 2).sum(1).mean() / 10
    expected = 0.4 * (terms["relu5_3"].mean() + logit) + 0.6 * low
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(logs["perceptual_logit"], logit.detach())
    assert not logs["perceptual"].requires_grad
    doubled, _ = build(alpha=0.4, weight=2.0)(reconstruction, images)
    torch.testing.assert_close(doubled, 2 * expected)


def test_only_weighted_layers_are_computed_and_the_image_side_without_gradient():
    reconstruction, images = pair()
    for alpha, layers, logits in ((1.0, ("relu5_3",), 2), (0.0, LOW, 0)):
        loss = build(alpha=alpha)
        loss(reconstruction, images)
        assert [c[0] for c in loss.features.calls] == [layers] * 2
        assert [c[2] for c in loss.features.calls] == [True, False]
        assert len(loss.classifier.sizes) == logits
    only_logits = PerceptualConfig(semantic_layers=LAYER_SETS["E"], logits_size=None)
    only_logits.build(None, FakeClassifier())(reconstruction, images)
    assert only_logits.assets() == ("vgg16-full",)
    assert PerceptualConfig(alpha=0, form="lpips").assets() == ("vgg16", "lpips-linear")


def test_autocast_does_not_reach_the_networks():
    reconstruction, images = pair()
    expected, _ = build()(reconstruction, images)
    loss = build()
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = loss(reconstruction.bfloat16(), images)
        exact, _ = loss(reconstruction, images)
    assert {c[3] for c in loss.features.calls} == {torch.float32}
    assert found.dtype == torch.float32 and torch.equal(exact, expected)


@pytest.mark.parametrize("form", ["paper", "balanced", "lpips"])
def test_finite_on_constant_and_identical_images(form):
    loss = build(alpha=0.4, form=form)
    loss.calibrate(pair()[1])
    for reconstruction, images in [
        (torch.zeros(2, 3, 16, 16), torch.zeros(2, 3, 16, 16)),
        (torch.zeros(2, 3, 16, 16), pair()[1]),
        (torch.full((2, 3, 16, 16), -1.0), torch.ones(2, 3, 16, 16)),
        (pair()[1].clone(), pair()[1]),
    ]:
        reconstruction.requires_grad_()
        value, _ = loss(reconstruction, images)
        value.backward()
        assert value.isfinite() and reconstruction.grad.isfinite().all()
        if torch.equal(reconstruction, images):
            assert value == 0


def test_balanced_makes_every_layer_count_alike():
    torch.manual_seed(3)
    images = torch.rand(8, 3, 16, 16) * 2 - 1
    loss = build(alpha=0.4, form="balanced")
    with pytest.raises(ValueError, match="calibrate"):
        loss(images, images)
    for half in images.chunk(2):
        loss.calibrate(half)
    terms = build(alpha=0.4)
    halves = [list(terms.terms(h.roll(1, 0), h).values()) for h in images.chunk(2)]
    torch.testing.assert_close(loss.scales, torch.tensor(halves).mean(0))
    _, logs = loss(images.roll(1, 0), images)
    values = [float(v) for k, v in logs.items() if k != "perceptual"]
    assert len(values) == 6 and all(0.3 < v < 3 for v in values)
    copy = build(alpha=0.4, form="balanced")
    copy.load_state_dict(loss.state_dict())
    assert torch.equal(copy(images.flip(0), images)[0], loss(images.flip(0), images)[0])


def test_balanced_refuses_equal_images():
    with pytest.raises(ValueError, match="expected different images"):
        build(form="balanced").calibrate(torch.zeros(4, 3, 16, 16))


def test_lpips_form_is_unit_normalised_and_weighted():
    reconstruction, images = pair()
    loss = build(alpha=0.0, form="lpips", detail_layers=("relu2_2",))
    vgg = FakeVGG()
    a, b = (F.normalize(vgg(x, ("relu2_2",))["relu2_2"], dim=1) for x in (reconstruction, images))
    expected = ((a - b) ** 2 * LINEAR["relu2_2"]).sum(1).mean()
    torch.testing.assert_close(loss(reconstruction, images)[0], expected, rtol=1e-4, atol=1e-6)


def test_logits_in_lpips_form_are_compared_by_correlation():
    torch.manual_seed(0)
    a, b = torch.randn(6, 10), torch.randn(6, 10)
    expected = [1 - torch.corrcoef(torch.stack(p))[0, 1] for p in zip(a, b)]
    torch.testing.assert_close(uncorrelated(a, b), torch.stack(expected).mean())
    assert uncorrelated(a, 3 * a + 7).item() == pytest.approx(0, abs=1e-5)
    assert uncorrelated(a, -a).item() == pytest.approx(2, abs=1e-5)


def test_images_are_upsampled_for_each_network():
    reconstruction, images = pair(8)
    loss = build(vgg_size=32, logits_size=24)
    value, _ = loss(reconstruction, images)
    assert {c[1][-1] for c in loss.features.calls} == {32} and set(loss.classifier.sizes) == {24}
    value.backward()
    assert reconstruction.grad.abs().sum() > 0
    assert resize(images, None) is images and resize(images, 8) is images


def test_nothing_of_the_networks_is_trained_or_saved():
    loss = build(alpha=0.4, form="lpips")
    assert not list(loss.parameters())
    assert set(loss.state_dict()) == {"scales", "num_calibrations"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": 1.5}, r"alpha in \[0, 1\], found 1.5"),
        ({"semantic_layers": ("relu9_9",)}, "relu9_9"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        build(**settings)


def test_missing_networks_are_refused():
    with pytest.raises(ValueError, match="expected a classifier"):
        PerceptualConfig().build(FakeVGG(), None)
    with pytest.raises(ValueError, match="expected a network for the layers"):
        PerceptualConfig(alpha=0).build(None, None)
    with pytest.raises(ValueError, match="expected LPIPS weights of relu1_2"):
        PerceptualConfig(alpha=0, form="lpips").build(FakeVGG())


def test_the_real_networks_fit():
    """Fetches VGG16's convolutions and EfficientNet-Lite0 into the cache, 76 MB, once."""
    config = PerceptualConfig(
        alpha=0.4, logits_from="efficientnet-lite0", vgg_size=32, logits_size=64, form="lpips"
    )
    loss = config.load()
    reconstruction, images = pair()
    value, logs = loss(reconstruction, images)
    value.backward()
    assert len(logs) == 7 and all(term > 0 for term in logs.values())
    assert reconstruction.grad.isfinite().all() and reconstruction.grad.abs().sum() > 0
