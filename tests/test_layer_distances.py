"""Distances by depth: they add up to LPIPS, are each image's own, and tell depths apart."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semvq.losses.perceptual import PerceptualConfig
from semvq.probe.layers import LOW_LAYERS, SEMANTIC_LAYERS, layer_distances

LAYERS = LOW_LAYERS + SEMANTIC_LAYERS


class FakeVGG(nn.Module):
    """Five convolutions under VGG's names, with pooling between them."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        widths = (3, 4, 6, 8, 6, 5)
        self.weights = [
            torch.randn(b, a, 3, 3, generator=generator) / a for a, b in zip(widths, widths[1:])
        ]
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor, layers: tuple[str, ...]) -> dict[str, Tensor]:
        self.seen.append(images)
        found, x = {}, images
        for name, weight in zip(LAYERS, self.weights):
            x = F.avg_pool2d(F.relu(F.conv2d(x, weight, padding=1)), 2)
            found[name] = x
        return {name: found[name] for name in layers}


LINEAR = {
    name: torch.rand(len(w), generator=torch.Generator().manual_seed(i))
    for i, (name, w) in enumerate(zip(LAYERS, FakeVGG().weights))
}


def pair(num: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    a, b = torch.rand(2, num, 3, 32, 32, generator=generator) * 2 - 1
    return a, b


def test_the_split_is_in_depth():
    assert LOW_LAYERS == ("relu1_2", "relu2_2", "relu3_3")
    assert SEMANTIC_LAYERS == ("relu4_3", "relu5_3")


def test_each_image_by_hand():
    a, b = pair()
    found = layer_distances(a, b, FakeVGG(), LINEAR)
    assert set(found) == {*LAYERS, "low", "semantic"}
    vgg = FakeVGG()
    for layer in LAYERS:
        x, y = (vgg(images, LAYERS)[layer].double() for images in (a, b))
        x, y = (v / v.norm(dim=1, keepdim=True) for v in (x, y))
        expected = ((x - y) ** 2 * LINEAR[layer].view(1, -1, 1, 1)).sum(1).mean((1, 2))
        assert found[layer].shape == (3,)
        assert torch.allclose(found[layer].double(), expected, rtol=1e-3)
    low = torch.stack([found[layer] for layer in LOW_LAYERS]).sum(0) / 3
    assert torch.allclose(found["low"], low)
    semantic = torch.stack([found[layer] for layer in SEMANTIC_LAYERS]).sum(0) / 2
    assert torch.allclose(found["semantic"], semantic)


def test_the_layers_add_up_to_lpips():
    a, b = pair()
    found = layer_distances(a, b, FakeVGG(), LINEAR)
    lpips = PerceptualConfig(alpha=0.0, form="lpips").build(FakeVGG(), linear=LINEAR)
    total = sum(found[layer].mean() for layer in LAYERS)
    assert float(total) == pytest.approx(float(lpips(a, b)[0]), rel=1e-5)


def test_an_images_distance_does_not_depend_on_its_batch():
    a, b = pair(4)
    whole = layer_distances(a, b, FakeVGG(), LINEAR)
    for i in range(4):
        alone = layer_distances(a[[i]], b[[i]], FakeVGG(), LINEAR)
        for name, value in alone.items():
            assert torch.allclose(value[0], whole[name][i], rtol=1e-5), name


def test_equal_images_are_at_distance_0_and_values_beyond_the_range_are_clamped():
    a, b = pair()
    assert all((d == 0).all() for d in layer_distances(a, a, FakeVGG(), LINEAR).values())
    far = layer_distances(b.sign() * 3, b, FakeVGG(), LINEAR)
    near = layer_distances(b.sign(), b, FakeVGG(), LINEAR)
    assert all(torch.equal(far[name], near[name]) for name in far)


def test_images_are_resized_and_float32_under_autocast():
    vgg, (a, b) = FakeVGG(), pair()
    plain = layer_distances(a, b, vgg, LINEAR, vgg_size=64)
    assert [tuple(x.shape) for x in vgg.seen] == [(3, 3, 64, 64)] * 2
    with torch.autocast("cpu", torch.bfloat16):
        cast = layer_distances(a, b, vgg, LINEAR, vgg_size=64)
    assert all(torch.equal(plain[name], cast[name]) for name in plain)


def test_no_gradient_is_kept():
    a, b = pair()
    assert not layer_distances(a.requires_grad_(), b, FakeVGG(), LINEAR)["low"].requires_grad


def test_what_it_refuses():
    a, b = pair()
    with pytest.raises(ValueError, match="expected two batches of one shape"):
        layer_distances(a[:1], b, FakeVGG(), LINEAR)
    with pytest.raises(ValueError, match="expected LPIPS weights of relu5_3"):
        layer_distances(a, b, FakeVGG(), {k: v for k, v in LINEAR.items() if k != "relu5_3"})


@pytest.mark.slow
def test_vgg16_takes_a_shift_for_low_level_and_a_blur_for_semantic():
    """Against another photo: a shift by 2 pixels shows the same thing, a strong blur does not."""
    from semvq.backbones.vgg import load_lpips_linear, load_vgg16
    from semvq.data.images import DataConfig, ImageSet, eval_batches, to_float
    from semvq.photos import fruit

    batches = eval_batches(ImageSet.open(fruit()[1]), DataConfig(resolution=64), 32)
    images = torch.cat([to_float(batch["image"]) for batch in batches])[::40]  # classes in order
    networks = load_vgg16(), load_lpips_linear()
    blurred = F.interpolate(F.avg_pool2d(images, 4), 64, mode="bicubic")
    ratio = {}
    for name, found in (
        ("shift", images.roll(2, -1)), ("photo", images.roll(1, 0)), ("blur", blurred),
    ):  # fmt: skip
        distances = layer_distances(found, images, *networks, vgg_size=128)
        ratio[name] = float(distances["semantic"].mean() / distances["low"].mean())
    assert ratio["shift"] < 0.7 * ratio["photo"] and ratio["blur"] > 1.5 * ratio["photo"]
