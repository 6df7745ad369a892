"""Protocol `reconstruction`: what a tokenizer keeps of held-out images (Sec. 4.1).

rFID, PSNR, SSIM and LPIPS between images and their reconstructions, both rounded to uint8, and how
much of the codebook is in use.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from semvq.assets import find
from semvq.backbones.vgg import load_lpips_linear, load_vgg16
from semvq.data.images import to_float
from semvq.evaluation.feature_sets import FeatureSet, FeatureSums
from semvq.evaluation.features import strict_fp32
from semvq.evaluation.frechet import frechet_distance
from semvq.evaluation.sources import Images, Source, rounded
from semvq.evaluation.streaming import Results, Setting, in_chunks, in_order, one_thread
from semvq.metrics import code_usage, perplexity, psnr, soft_perplexity, ssim
from semvq.probe.layers import LOW_LAYERS, SEMANTIC_LAYERS, layer_distances
from semvq.tokenizer.model import Tokenizer

Figures = Iterator[tuple[str, float]]


@dataclass(frozen=True)
class Reconstructed:
    """All that was measured: feature sets of both sides, figures (N,) per image, codes (N, h, w).

    `sets` are the features of the images and of their reconstructions, None without a network.
    `per_image` has psnr, ssim, lpips and, of its layers, low and semantic. `mean_assignment` (K,)
    is None where the quantizer has no soft one.
    """

    sets: tuple[FeatureSet, FeatureSet] | None
    per_image: dict[str, Tensor]
    codes: Tensor
    labels: Tensor
    mean_assignment: Tensor | None
    num_codes: int

    @property
    def real(self) -> FeatureSet:
        """Features of the images, where there was a network to take them."""
        assert self.sets is not None
        return self.sets[0]

    @property
    def fake(self) -> FeatureSet:
        """Features of their reconstructions, likewise."""
        assert self.sets is not None
        return self.sets[1]


class ImageDistances:
    """PSNR, SSIM and LPIPS per image, and LPIPS's layers apart, of uint8 images."""

    def __init__(self, device: torch.device) -> None:
        self.vgg, self.linear = load_vgg16().to(device), load_lpips_linear()
        self.device = device

    @torch.no_grad()
    def __call__(self, found: Tensor, wanted: Tensor) -> dict[str, Tensor]:
        """Figures (n,) of images (n, 3, H, W) against the ones they should be, on the CPU."""
        return in_chunks(self._of_chunk, found, wanted)

    def _of_chunk(self, found: Tensor, wanted: Tensor) -> Results:
        a, b = to_float(found.to(self.device)), to_float(wanted.to(self.device))
        layers = layer_distances(a, b, self.vgg, self.linear)
        figures = {
            "psnr": psnr(a, b),
            "ssim": ssim(a, b),
            # LPIPS v0.1 is the sum of its five layers
            "lpips": torch.stack([layers[n] for n in LOW_LAYERS + SEMANTIC_LAYERS]).sum(0),
            "low": layers["low"],
            "semantic": layers["semantic"],
        }
        return {name: value.cpu() for name, value in figures.items()}


def distance_facts() -> dict[str, str | None]:
    """Hashes of the weights that LPIPS, and its layers apart, are measured with.

    Loading has checked that they are these.
    """
    return {f"{name} weights": find(name).sha256 for name in ("vgg16", "lpips-linear")}


def reconstruction(tokenizer: Tokenizer, source: Source, setting: Setting) -> Figures:
    """Figures of the protocol, at the writer; source: held-out images of the tokenizer's size."""
    found = reconstruct_all(tokenizer, source, setting)
    if found is None:
        return
    with one_thread():
        yield "num_images", len(found.codes)
        yield "rfid", frechet_distance(found.real.gaussian, found.fake.gaussian)
        yield from reconstruction_quality(found)
        yield "codebook_usage", code_usage(found.codes, found.num_codes)
        yield "perplexity", perplexity(found.codes, found.num_codes)
        if found.mean_assignment is not None:
            yield "soft_perplexity", soft_perplexity(found.mean_assignment.unsqueeze(0))


def reconstruction_quality(found: Reconstructed) -> Figures:
    """Means over images of what has to stand beside every cross-entropy of codes."""
    for name in ("psnr", "ssim", "lpips"):
        yield name, float(found.per_image[name].double().mean())


def reconstruct_all(tokenizer: Tokenizer, source: Source, setting: Setting) -> Reconstructed | None:
    """Send every image through the tokenizer; None at processes that only help."""
    device = tokenizer.last_layer.device
    distances = ImageDistances(device)
    sums = (FeatureSums(), FeatureSums()) if setting.net else None
    gathered: dict[str, list[Tensor]] = defaultdict(list)

    def of_chunk(pixels: Tensor) -> Results:
        latents = tokenizer.latents(to_float(pixels.to(device)))
        codes = tokenizer.quantizer.encode(latents)
        again = rounded(tokenizer.decode(codes))
        results = distances(again, pixels) | {"codes": codes.int().cpu(), "fake": again}
        soft = tokenizer.quantizer.mean_assignment(latents)
        if soft is not None:
            results["soft"] = soft.double().cpu().unsqueeze(0) * len(codes)
        return results

    @torch.no_grad()
    def compute(unit: Images) -> Results:
        with strict_fp32():
            results = in_chunks(of_chunk, unit.pixels) | {"labels": unit.labels}
        again = results.pop("fake")
        if sums is not None:
            results |= {"real": setting.features(unit.pixels), "fake": setting.features(again)}
        return results

    def consume(results: Results) -> None:
        if sums is not None:
            for side, name in zip(sums, ("real", "fake")):
                side.add(results.pop(name))
        for name, value in results.items():
            gathered[name].append(value)

    in_order(source, compute, consume, setting, "reconstructing")
    if not setting.world.is_writer:
        return None
    columns = {name: torch.cat(parts) for name, parts in gathered.items()}
    codes, labels, soft = (
        columns.pop("codes").long(),
        columns.pop("labels"),
        columns.pop("soft", None),
    )
    facts = setting.feature_facts(source.side, source.facts())
    sets = None if sums is None else (sums[0].result(facts), sums[1].result(facts))
    share = None if soft is None else soft.sum(0) / len(codes)
    return Reconstructed(sets, columns, codes, labels, share, tokenizer.num_codes)


@torch.no_grad()
def encoded(tokenizer: Tokenizer, pixels: Tensor) -> Tensor:
    """Codes (n, h, w), on the tokenizer's device, of uint8 images (n, 3, H, W)."""
    device = tokenizer.last_layer.device
    with strict_fp32():
        found = in_chunks(lambda x: {"": tokenizer.encode(to_float(x.to(device)))}, pixels)
    return found[""]
