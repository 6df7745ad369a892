"""Figures on images and codes against scikit-image, closed forms and LPIPS's own definition."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchmetrics
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from semvq import assets
from semvq.losses.perceptual import PerceptualConfig
from semvq.metrics import (
    bits,
    bits_per_pixel,
    code_counts,
    perplexity,
    psnr,
    soft_perplexity,
    ssim,
)


def noise(height: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    x = torch.rand(2, 3, 3, height, width, generator=rng) * 2 - 1
    return x[0], x[1]


def scene(height: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images with shading, edges and grain as photos have, and blurred, faded copies of them."""
    rng = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    images = torch.empty(3, 3, height, width)
    for image in images:
        a, b, c, d = torch.rand(4, generator=rng)
        colour = torch.rand(3, 1, 1, generator=rng)
        image.copy_(0.5 * a * x + 0.3 * torch.sin(9 * b * y + 4 * c) + colour)
        image[:, (x - c) ** 2 + (y - d) ** 2 < 0.07] = 1 - colour[:, 0]
    images = (images + 0.03 * torch.randn(images.shape, generator=rng)).clamp(0, 1) * 2 - 1
    copies = 0.9 * F.avg_pool2d(images, 3, 1, 1, count_include_pad=False) + 0.04
    return copies, images


def skimage_ssim(found: Tensor, wanted: Tensor) -> list[float]:
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return [
        structural_similarity(a, b, data_range=2.0, channel_axis=0, **settings)
        for a, b in zip(found.double().numpy(), wanted.double().numpy())
    ]


SIZES = [(32, 32), (37, 51), (11, 11), (11, 40), (64, 12)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("make", [noise, scene])
def test_ssim_equals_skimages(make, size):
    found, wanted = make(*size)
    ours = ssim(found, wanted)
    assert ours.shape == (3,)
    assert ours.tolist() == pytest.approx(skimage_ssim(found, wanted), abs=1e-9)
    assert make is noise or 0.1 < float(ours.min()) < float(ours.max()) < 0.99


@pytest.mark.parametrize("size", [*SIZES, (3, 5)])
@pytest.mark.parametrize("make", [noise, scene])
def test_psnr_equals_skimages(make, size):
    found, wanted = make(*size)
    expected = [
        peak_signal_noise_ratio(b, a, data_range=2.0)
        for a, b in zip(found.double().numpy(), wanted.double().numpy())
    ]
    assert psnr(found, wanted).tolist() == pytest.approx(expected, rel=1e-6)


def test_identical_images():
    _, images = scene(40, 33)
    assert ssim(images, images).tolist() == pytest.approx([1] * 3, abs=1e-14)
    flat = torch.full((1, 3, 16, 16), -1.0)
    assert ssim(flat, flat).item() == 1
    for x in (images, flat):
        assert bool(psnr(x, x).isfinite().all()) and float(psnr(x, x).min()) > 100


def test_reconstructions_are_clamped():
    found, wanted = scene(20, 20)
    for figure in (psnr, ssim):
        assert torch.equal(figure(found * 3, wanted), figure((found * 3).clamp(-1, 1), wanted))


def test_ssim_of_flat_images():
    # without structure only luminance is left: (2 a b + c) / (a^2 + b^2 + c), range 2
    a, b, c = 0.5, -0.25, 0.02**2
    found = ssim(torch.full((1, 3, 12, 12), a), torch.full((1, 3, 12, 12), b)).item()
    assert found == pytest.approx((2 * a * b + c) / (a * a + b * b + c), rel=1e-9)


@pytest.mark.parametrize("size", [(10, 32), (32, 10), (1, 1)])
def test_images_smaller_than_the_window_are_refused(size):
    with pytest.raises(ValueError, match=rf"at least 11 pixels a side, found \({size[0]}, "):
        ssim(*noise(*size))


def test_bits():
    assert bits(math.log(2)) == 1 and bits(math.log(1024)) == pytest.approx(10)
    # 256 codes of 10 bits for 256 x 256 pixels
    assert bits_per_pixel(math.log(1024), 16, 1) == pytest.approx(256 * 10 / 256**2)
    assert bits_per_pixel(math.log(1024), 16, 4) == pytest.approx(4 * 256 * 10 / 256**2)


def test_soft_perplexity():
    rng = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 7, (500,), generator=rng)
    hard = F.one_hot(codes, 16)
    assert soft_perplexity(hard) == pytest.approx(perplexity(codes, 16))
    assert soft_perplexity(torch.full((5, 16), 1 / 16)) == pytest.approx(16)
    assert soft_perplexity(torch.eye(16)[:1].expand(9, 16)) == 1
    # two places, each sure of one code, use two; the mean of entropies would say one
    assert soft_perplexity(torch.eye(16)[[3, 8]]) == pytest.approx(2)
    shares = torch.randn(100, 16, generator=rng).mul(3).softmax(1)
    mean = shares.double().mean(0)
    assert soft_perplexity(shares) == pytest.approx(float((-mean * mean.log()).sum().exp()))
    assert float(code_counts(codes, 16).sum()) == 500


# VGG16's convolutions in torchvision's numbering, one list per block
_BLOCKS = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))


def lpips(found: Tensor, wanted: Tensor) -> Tensor:
    """LPIPS v0.1 with VGG16 (Zhang et al. 2018, Eq. 1) as the `lpips` package has it; (B,).

    The linear weights are the copy that torchmetrics carries, not ours.
    """
    folder = Path(torchmetrics.__file__).parent / "functional" / "image" / "lpips_models"
    linear = torch.load(folder / "vgg.pth", map_location="cpu", weights_only=True)
    weights = assets.load("vgg16")
    shift = torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1)
    x, total = (torch.stack([found, wanted]).flatten(0, 1) - shift) / scale, torch.zeros(len(found))
    for number, block in enumerate(_BLOCKS):
        x = F.max_pool2d(x, 2) if number else x
        for i in block:
            weight, bias = (weights[f"features.{i}.{name}"] for name in ("weight", "bias"))
            x = F.relu(F.conv2d(x, weight, bias, padding=1))
        unit = x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)
        a, b = unit.chunk(2)
        weighted = F.conv2d((a - b).square(), linear[f"lin{number}.model.1.weight"])
        total += weighted.mean((2, 3)).squeeze(1)
    return total


@pytest.mark.parametrize("make", [noise, scene])
def test_lpips_is_that_of_the_package(make):
    loss = PerceptualConfig(alpha=0.0, form="lpips").load()
    found, wanted = make(48, 64)
    with torch.no_grad():
        expected = lpips(found, wanted)
        ours = [loss(a[None], b[None])[0] for a, b in zip(found, wanted)]
        together, _ = loss(found, wanted)
    assert [float(x) for x in ours] == pytest.approx(expected.tolist(), rel=1e-5)
    assert float(together) == pytest.approx(float(expected.mean()), rel=1e-5)
    assert float(expected.min()) > 0.05
