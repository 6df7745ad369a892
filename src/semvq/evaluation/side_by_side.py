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
from semvq.evaluation.rows import Rows
from semvq.evaluation.sources import UNIT, SampledImages, Source
from semvq.evaluation.streaming import Setting
from semvq.generators.base import Generator
from semvq.metrics import bits, bits_per_pixel, code_usage, perplexity
from semvq.probe.calibration import expected_calibration_error
from semvq.probe.comparison import Compared, Value
from semvq.probe.separability import SMALL_IMAGES, position_nats, small_transformer
from semvq.tokenizer.model import Tokenizer

MASK_RATIO = 0.5  # of the NAR figures
SHOWN_SAMPLES = 16


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


def compare_all(
    entrants: Sequence[Entrant],
    source: Source,
    shown: Tensor,
    setting: Setting,
    training: Training | None,
) -> tuple[list[Compared], list[Rows]]:
    """Pictures of every tokenizer for the photos numbered `shown`, and its figures by row.

    What codes alone decide is measured once per code space.
    """
    by_space: dict[str, Rows] = {}
    found = [_compare(e, source, shown, setting, training, by_space) for e in entrants]
    return [pictures for pictures, _ in found], [rows for _, rows in found]


def _compare(
    entrant: Entrant,
    source: Source,
    shown: Tensor,
    setting: Setting,
    training: Training | None,
    by_space: dict[str, Rows],
) -> tuple[Compared, Rows]:
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
        space = entrant.tokenizer.code_space_hash()
        if space not in by_space:
            by_space[space] = code_rows(entrant.tokenizer, whole, training)
        rows |= by_space[space]
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
