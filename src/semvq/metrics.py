"""Pure figures on images and codes; they know tensors only.

Reconstruction: PSNR, colour. Codes: usage, perplexity, unigram entropies (the floor a transformer
must beat). Metrics that need a pretrained network live beside that network's loss or protocol.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

_SSIM_WINDOW = 11


def psnr(reconstruction: Tensor, images: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB per image; both (B, 3, H, W), range [-1, 1], clamped."""
    error = (reconstruction.clamp(-1, 1) - images).float().square().flatten(1).mean(1)
    return 10 * torch.log10(4.0 / error.clamp_min(1e-12))


def ssim(reconstruction: Tensor, images: Tensor) -> Tensor:
    """Structural similarity per image (Wang et al. 2004); both (B, 3, H, W), [-1, 1], clamped.

    Gaussian window of 11 x 11 pixels, sigma 1.5, constants 0.01 and 0.03 of the range, per channel,
    mean over the places where the window fits. ValueError for images it does not fit in.
    """
    if min(images.shape[-2:]) < _SSIM_WINDOW:
        size = tuple(images.shape[-2:])
        raise ValueError(f"expected images of at least {_SSIM_WINDOW} pixels a side, found {size}")
    x, y = reconstruction.double().clamp(-1, 1), images.double()
    mean_x, mean_y = _blur(x), _blur(y)
    var_x, var_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (var_x + var_y + c2)
    return (luminance * structure).flatten(1).mean(1)


def _blur(x: Tensor) -> Tensor:
    """Weighted means (B, C, H - 10, W - 10) under the window of SSIM."""
    rows, columns = (_window_matrix(side, x) for side in x.shape[-2:])
    return rows @ x @ columns.T


def _window_matrix(side: int, like: Tensor) -> Tensor:
    """(side - 10, side): row i holds the window's weights from column i on.

    As a matrix product it is several times faster than a float64 convolution.
    """
    offsets = torch.arange(_SSIM_WINDOW, device=like.device, dtype=like.dtype) - _SSIM_WINDOW // 2
    window = torch.exp(-0.5 * (offsets / 1.5) ** 2)
    matrix = like.new_zeros(side - _SSIM_WINDOW + 1, side)
    for offset, weight in enumerate(window / window.sum()):
        matrix.diagonal(offset).fill_(weight)
    return matrix


def chroma_r2(reconstruction: Tensor, images: Tensor, block: int = 4) -> float:
    """Share of the colour's variance that survives: 1 is all of it; both (N, 3, H, W), [-1, 1].

    R squared, over all images and places, of what the mean over `block` x `block` pixels of every
    channel is beyond the grey value there. PSNR hardly sees colours fade; this does.
    """

    def chroma(x: Tensor) -> Tensor:
        x = F.avg_pool2d(x.clamp(-1, 1).float(), block)
        return x - x.mean(1, keepdim=True)

    found, wanted = chroma(reconstruction), chroma(images)
    spread = (wanted - wanted.mean((0, 2, 3), keepdim=True)).square().sum()
    return float(1 - (found - wanted).square().sum() / spread.clamp_min(1e-12))


def code_counts(codes: Tensor, num_codes: int) -> Tensor:
    """How often each of `num_codes` codes occurs in `codes` (any shape); int64 (num_codes,)."""
    return torch.bincount(codes.flatten(), minlength=num_codes)


def code_usage(codes: Tensor, num_codes: int) -> float:
    """Share of the codebook that occurs in `codes` at all, in [0, 1]."""
    return float((code_counts(codes, num_codes) > 0).float().mean())


def entropy(counts: Tensor) -> float:
    """Plug-in entropy of a histogram in nats; exp of it is the perplexity."""
    share = counts.double() / counts.sum().clamp_min(1)
    return float(-(share * share.clamp_min(1e-300).log()).sum())


def unigram_entropy(codes: Tensor, num_codes: int) -> float:
    """Entropy in nats per code of the codes' own marginal: no model that ignores context beats it.

    The plug-in estimate is biased low on few codes, which makes the bar higher, never lower.
    """
    return entropy(code_counts(codes, num_codes))


def class_unigram_entropy(codes: Tensor, classes: Tensor, num_codes: int) -> float:
    """As `unigram_entropy`, with one marginal per class: codes (N, ...), classes (N,)."""
    total = 0.0
    for label in classes.unique():
        share = codes[classes == label]
        total += share.numel() * unigram_entropy(share, num_codes)
    return total / codes.numel()


def unigram_cross_entropy(train_codes: Tensor, codes: Tensor, num_codes: int) -> float:
    """Nats per code that a unigram model of `train_codes` (add-one smoothed) pays on `codes`."""
    model = (code_counts(train_codes, num_codes) + 1).double()
    log_share = (model / model.sum()).log()
    counts = code_counts(codes, num_codes).double()
    return float(-(counts * log_share).sum() / counts.sum())


def bits(nats: float) -> float:
    """Nats as bits."""
    return nats / math.log(2)


def bits_per_pixel(nats_per_code: float, factor: int, codes_per_place: int) -> float:
    """Bits that a pixel costs where so many codes stand for `factor` x `factor` of them."""
    return bits(nats_per_code) * codes_per_place / factor**2


def soft_perplexity(assignments: Tensor) -> float:
    """exp of the entropy of the mean assignment: codes in effective use where each place has many.

    assignments: probabilities over the codes, (N, K), rows that add up to 1. Between 1 and K.
    """
    return math.exp(entropy(assignments.double().sum(0)))


def perplexity(codes: Tensor, num_codes: int) -> float:
    """exp of the unigram entropy: how many codes are in effective use."""
    return math.exp(unigram_entropy(codes, num_codes))
