"""Several tokenizers on the same held-out photos: everything `semvq compare` shows (Fig. 5, 6).

A tokenizer comes alone or with transformers of its code space; what needs one is left out where
there is none. Cross-entropies always stand beside PSNR: a tokenizer that lost the content has the
easiest codes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from semvq.data.images import pieces, to_float
from semvq.evaluation.feature_sets import FeatureSet
from semvq.evaluation.features import strict_fp32
from semvq.evaluation.frechet import frechet_distance
from semvq.evaluation.generation import classes_like, measure
from semvq.evaluation.intervals import (
    frechet_interval,
    mean_interval,
    perplexity_interval,
    sample_interval,
)
from semvq.evaluation.prediction import Predicted, predict_all
from semvq.evaluation.reconstruction import ImageDistances, Reconstructed, reconstruct_all
from semvq.evaluation.sources import UNIT, SampledImages, Source
from semvq.evaluation.streaming import Setting
from semvq.generators.base import Generator
from semvq.metrics import bits, bits_per_pixel, code_usage, perplexity
from semvq.probe.calibration import expected_calibration_error
from semvq.probe.comparison import Compared, Figure, Value
from semvq.probe.plots import Point, Scatter
from semvq.probe.separability import SMALL_IMAGES, position_nats, small_transformer
from semvq.tokenizer.model import Tokenizer

QUALITY = "PSNR"  # the row that stands beside every cross-entropy
MASK_RATIO = 0.5  # of the NAR figures
SHOWN_SAMPLES = 16
Rows = dict[str, Value]


@dataclass(frozen=True)
class Entrant:
    """A tokenizer under a name, with the transformers that learned its codes, by "AR" or "NAR"."""

    name: str
    subtitle: str
    tokenizer: Tokenizer
    generators: Mapping[str, Generator] = field(default_factory=dict)


@dataclass(frozen=True)
class Training:
    """What is measured against training images: their features, and how many samples to draw.

    `source` are the images, for codes to fit n-grams on.
    """

    source: Source
    features: FeatureSet
    num_samples: int
    seed: int
    sampling: Mapping[str, Mapping[str, Any]]  # options by "AR" or "NAR"


@dataclass(frozen=True)
class Row:
    """What a figure is called and how it is read."""

    unit: str = ""
    better: str | None = None
    note: str = ""
    beside: str | None = None


ROWS: dict[str, Row] = {
    "PSNR": Row("dB", "higher", "of reconstructions"),
    "SSIM": Row("", "higher"),
    "LPIPS": Row("", "lower", "VGG16, v0.1"),
    "rFID": Row("", "lower", "reconstructions against the same photos"),
    "reconstruction, low layers": Row("", "lower", "VGG16, relu1_2 to relu3_3"),
    "reconstruction, semantic layers": Row("", "lower", "VGG16, relu4_3 and relu5_3"),
    "codebook usage": Row("", "higher", "share of codes that occur in these photos"),
    "perplexity": Row("codes", "higher"),
    "unigram": Row("bits/code", None, "every code alone", QUALITY),
    "n-gram": Row("bits/code", "lower", "from the codes to the left and above", QUALITY),
    "n-gram gain": Row("bits/code", "higher", "over the unigram", QUALITY),
    "small transformer": Row("bits/code", "lower", "2 layers, trained for a minute", QUALITY),
    "AR cross-entropy": Row("bits/code", "lower", "", QUALITY),
    "AR bits per pixel": Row("bits/pixel", "lower", "", QUALITY),
    "AR top-1 accuracy": Row("", "higher", "", QUALITY),
    "AR top-5 accuracy": Row("", "higher", "", QUALITY),
    "AR calibration error": Row("", "lower"),
    "prediction FID": Row("", "lower", "decoded AR predictions against the photos"),
    "prediction LPIPS": Row("", "lower"),
    "prediction, low layers": Row("", "lower", "VGG16, relu1_2 to relu3_3"),
    "prediction, semantic layers": Row("", "lower", "VGG16, relu4_3 and relu5_3"),
    "NAR cross-entropy": Row("bits/code", "lower", "half of the codes masked", QUALITY),
    "NAR top-1 accuracy": Row("", "higher", "half of the codes masked", QUALITY),
    "AR FID": Row("", "lower", "samples against the training images"),
    "NAR FID": Row("", "lower", "samples against the training images"),
}
AGAINST_FID = (
    "rFID", "n-gram", "AR cross-entropy", "AR top-1 accuracy", "prediction FID",
    "prediction, semantic layers",
)  # fmt: skip


def compare(
    entrant: Entrant, source: Source, shown: Tensor, setting: Setting, training: Training | None
) -> tuple[Compared, Rows]:
    """The pictures of one tokenizer for the photos numbered `shown`, and its figures by row."""
    whole = reconstruct_all(entrant.tokenizer, source, setting)
    assert whole is not None, "a comparison runs in one process"
    rows = reconstruction_rows(whole)
    found: Predicted | None = None
    if ar := entrant.generators.get("AR"):
        found = predict_all(ar, entrant.tokenizer, source, setting)
        assert found is not None
        rows |= prediction_rows(whole, found, entrant.tokenizer.config.factor)
    if nar := entrant.generators.get("NAR"):
        masked = predict_all(nar, entrant.tokenizer, source, setting, MASK_RATIO)
        assert masked is not None
        rows |= masked_rows(masked)
    samples = None
    if training is not None:
        rows |= code_rows(entrant.tokenizer, whole, training)
        for kind, generator in entrant.generators.items():
            drawn = _samples(entrant.tokenizer, generator, kind, training)
            rows[f"{kind} FID"] = _generation_fid(drawn, kind, training, setting)
            samples = samples if samples is not None else _first(drawn)
    return _pictures(entrant, whole, found, shown, samples), rows


def between_photos(source: Source, device: torch.device) -> dict[str, float]:
    """Mean distances between two different photos: about where nothing is left in common."""
    unit = next(source.units(iter([range(min(UNIT, source.num))])))
    found = ImageDistances(device)(unit.pixels.roll(1, 0), unit.pixels)
    return {name: float(found[name].mean()) for name in ("lpips", "low", "semantic")}


def figures(rows: Sequence[Rows]) -> list[Figure]:
    """The table, from the rows of every tokenizer; rows that nobody has are left out."""
    table = []
    for name, row in ROWS.items():
        values = [found.get(name) for found in rows]
        if any(values):
            table.append(Figure(name, values, row.unit, row.better, row.note, row.beside))
    return table


def scatters(names: Sequence[str], rows: Sequence[Rows]) -> list[Scatter]:
    """Figures that need no samples, against the FID of samples, where at least two have both."""
    plots = []
    for kind in ("AR FID", "NAR FID"):
        for figure in AGAINST_FID:
            both = [
                (n, r[figure], r[kind]) for n, r in zip(names, rows) if {figure, kind} <= set(r)
            ]
            if len(both) > 1:
                points = [
                    Point(n, x.value, y.value, x.plus_minus, y.plus_minus) for n, x, y in both
                ]
                unit = f" ({ROWS[figure].unit})" if ROWS[figure].unit else ""
                plots.append(Scatter(f"{figure} and {kind}", figure + unit, kind, points))
    return plots


def reconstruction_rows(whole: Reconstructed) -> Rows:
    """What the tokenizer keeps, and how it uses its codes."""
    names = {
        "PSNR": "psnr", "SSIM": "ssim", "LPIPS": "lpips", "reconstruction, low layers": "low",
        "reconstruction, semantic layers": "semantic",
    }  # fmt: skip
    rows = {row: _mean(whole.per_image[name]) for row, name in names.items()}
    rows["rFID"] = _frechet(whole.real, whole.fake)
    # every photo more can only raise it, so drawing photos again would mislead
    rows["codebook usage"] = Value(code_usage(whole.codes, whole.num_codes))
    spread = perplexity_interval(whole.codes, whole.num_codes)
    rows["perplexity"] = Value(perplexity(whole.codes, whole.num_codes), spread)
    return rows


def prediction_rows(whole: Reconstructed, found: Predicted, factor: int) -> Rows:
    """What the AR transformer predicts given the true context."""
    p = found.prediction
    nats = _mean(p.cross_entropy.flatten(1).mean(1))
    names = {
        "prediction LPIPS": "lpips", "prediction, low layers": "low",
        "prediction, semantic layers": "semantic",
    }  # fmt: skip
    return {
        "AR cross-entropy": _scaled(nats, bits(1.0)),
        "AR bits per pixel": _scaled(nats, bits_per_pixel(1.0, factor)),
        "AR top-1 accuracy": _mean(p.correct.flatten(1).double().mean(1)),
        "AR top-5 accuracy": _mean(p.in_top5.flatten(1).double().mean(1)),
        "AR calibration error": Value(expected_calibration_error(p.confidence, p.correct)),
        "prediction FID": _frechet(whole.real, found.images),
        **{row: _mean(found.per_image[name]) for row, name in names.items()},
    }


def masked_rows(found: Predicted) -> Rows:
    """What the NAR transformer predicts of the hidden half; every image hides equally many."""
    assert found.masked is not None
    hidden = found.masked.flatten(1).double()
    share = hidden.sum(1)
    nats = (found.prediction.cross_entropy.flatten(1) * hidden).sum(1) / share
    right = (found.prediction.correct.flatten(1) * hidden).sum(1) / share
    return {
        "NAR cross-entropy": _scaled(_mean(nats), bits(1.0)),
        "NAR top-1 accuracy": _mean(right),
    }


def code_rows(tokenizer: Tokenizer, whole: Reconstructed, training: Training) -> Rows:
    """How predictable the codes are for models that take seconds to fit."""
    codes = encode_all(tokenizer, training.source)
    nats = position_nats(codes, whole.codes, whole.num_codes)
    per_image = {name: bits(1.0) * x.flatten(1).mean(1) for name, x in nats.items()}
    small = small_transformer(
        codes, whole.codes, whole.num_codes, num_images=SMALL_IMAGES, seed=training.seed
    )
    return {
        "unigram": _mean(per_image["unigram"]),
        "n-gram": _mean(per_image["ngram"]),
        "n-gram gain": _mean(per_image["unigram"] - per_image["ngram"]),
        "small transformer": Value(bits(small)),
    }


@torch.no_grad()
def encode_all(tokenizer: Tokenizer, source: Source) -> Tensor:
    """Codes (N, h, w) on the CPU of every image of a source."""
    device = tokenizer.last_layer.device
    with strict_fp32():
        parts = [
            tokenizer.encode(to_float(unit.pixels.to(device))).cpu()
            for unit in source.units(pieces(range(source.num), UNIT))
            if len(unit.pixels)
        ]
    return torch.cat(parts)


def _samples(
    tokenizer: Tokenizer, generator: Generator, kind: str, training: Training
) -> SampledImages:
    num_classes = generator.config.num_classes
    labels = classes_like(training.features.class_counts, training.num_samples, num_classes)
    options = dict(training.sampling.get(kind, {}))
    return SampledImages(generator, tokenizer, labels, training.seed, options)


def _generation_fid(drawn: Source, kind: str, training: Training, setting: Setting) -> Value:
    found = measure(drawn, setting, f"sampling ({kind})")
    assert found is not None
    distance = frechet_distance(training.features.gaussian, found.gaussian)
    return Value(distance, sample_interval(training.features, found))


def _first(drawn: Source) -> Tensor:
    """The first samples, to look at, in [-1, 1]."""
    unit = next(drawn.units(iter([range(min(SHOWN_SAMPLES, drawn.num))])))
    return to_float(unit.pixels)


def _pictures(
    entrant: Entrant,
    whole: Reconstructed,
    found: Predicted | None,
    shown: Tensor,
    samples: Tensor | None,
) -> Compared:
    def decoded(codes: Tensor) -> Tensor:
        tokenizer = entrant.tokenizer
        with torch.no_grad(), strict_fp32():
            images = tokenizer.decode(codes.to(tokenizer.last_layer.device))
        return images.clamp(-1, 1).cpu()

    reconstructions = decoded(whole.codes[shown])
    if found is None:
        return Compared(entrant.name, entrant.subtitle, reconstructions, samples=samples)
    p = found.prediction
    return Compared(
        entrant.name,
        entrant.subtitle,
        reconstructions,
        predictions=decoded(p.codes[shown]),
        correct=p.correct[shown],
        entropy=p.entropy[shown],
        samples=samples,
    )


def _mean(values: Tensor) -> Value:
    return Value(float(values.double().mean()), mean_interval(values))


def _scaled(value: Value, factor: float) -> Value:
    spread = value.plus_minus
    return Value(value.value * factor, None if spread is None else spread * factor)


def _frechet(real: FeatureSet, fake: FeatureSet) -> Value:
    return Value(frechet_distance(real.gaussian, fake.gaussian), frechet_interval(real, fake))
