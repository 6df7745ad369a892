"""Several tokenizers on the same held-out photos: everything `semvq compare` shows (Fig. 5, 6).

A tokenizer comes alone or with transformers of its code space; what needs one is left out where
there is none. Cross-entropies always stand beside PSNR: a tokenizer that lost the content has the
easiest codes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from semvq.data.images import pieces, to_float
from semvq.data.order import spread
from semvq.evaluation.feature_sets import FeatureSet
from semvq.evaluation.features import strict_fp32
from semvq.evaluation.frechet import fit, frechet_distance
from semvq.evaluation.generation import classes_like, measure
from semvq.evaluation.intervals import (
    frechet_interval,
    mean_interval,
    perplexity_interval,
    sample_interval,
)
from semvq.evaluation.photos import NotedImages
from semvq.evaluation.prediction import Predicted, code_size, predict_all
from semvq.evaluation.reconstruction import Reconstructed, encoded, reconstruct_all
from semvq.evaluation.rows import Rows
from semvq.evaluation.sources import UNIT, FileImages, SampledImages, Source, UnigramImages
from semvq.evaluation.streaming import Setting
from semvq.generators.base import Generator
from semvq.metrics import bits, bits_per_pixel, code_counts, code_usage, perplexity
from semvq.probe.calibration import expected_calibration_error
from semvq.probe.comparison import Compared, Value
from semvq.probe.separability import SMALL_IMAGES, position_nats, small_transformer
from semvq.tokenizer.model import Tokenizer

KINDS = ("AR", "NAR")  # the first that a tokenizer has draws the samples that are shown
MASK_RATIO = 0.5  # of the NAR figures
SHOWN_SAMPLES = 16
UNIGRAM, PHOTOS = "unigram FID", "held-out FID"  # the two controls of samples


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


class SideBySide(NamedTuple):
    """Pictures and figures by row of every tokenizer, in their order.

    `photos` int64 (N,) are the numbers of all that could be read, `shown` of those in the pictures.
    """

    pictures: list[Compared]
    rows: list[Rows]
    photos: Tensor
    shown: Tensor


def compare_all(
    entrants: Sequence[Entrant],
    source: FileImages,
    num_shown: int,
    setting: Setting,
    training: Training | None,
) -> SideBySide:
    """Measure every tokenizer; at most `num_shown` photos are in the pictures.

    What codes alone decide is measured once per code space.
    """
    by_space: dict[str, tuple[Rows, Tensor]] = {}
    noted = NotedImages(source)
    real: dict[str, Value] = {}  # the control of photos, once
    found = [_compare(e, noted, num_shown, setting, training, by_space, real) for e in entrants]
    photos = noted.numbers
    shown = photos[spread(len(photos), num_shown)]
    return SideBySide([p for p, _ in found], [rows for _, rows in found], photos, shown)


def _compare(
    entrant: Entrant,
    source: Source,
    num_shown: int,
    setting: Setting,
    training: Training | None,
    by_space: dict[str, tuple[Rows, Tensor]],
    real: dict[str, Value],
) -> tuple[Compared, Rows]:
    whole = reconstruct_all(entrant.tokenizer, source, setting)
    assert whole is not None, "a comparison runs in one process"
    _say(setting, f"{entrant.name}: intervals of reconstruction, by bootstrap")
    rows = reconstruction_rows(whole)
    found: Predicted | None = None
    if ar := entrant.generators.get("AR"):
        found = predict_all(ar, entrant.tokenizer, source, setting)
        assert found is not None
        _say(setting, f"{entrant.name}: intervals of prediction, by bootstrap")
        rows |= prediction_rows(whole, found, code_size(entrant.tokenizer))
    if nar := entrant.generators.get("NAR"):
        masked = predict_all(nar, entrant.tokenizer, source, setting, MASK_RATIO)
        assert masked is not None
        rows |= masked_rows(masked)
    samples: dict[str, Any] = {}
    if training is not None:
        space = entrant.tokenizer.code_space_hash()
        if space not in by_space:
            by_space[space] = code_rows(entrant.tokenizer, whole, training, setting)
        code_figures, counts = by_space[space]
        rows |= code_figures
        if entrant.generators:
            labels, whom = torch.zeros(training.num_samples, dtype=torch.int64), entrant.tokenizer
            alone = UnigramImages(whom, counts, whom.grid, labels, training.seed)
            rows[UNIGRAM] = _generation_fid(alone, "unigram control", training, setting)
            if not real:
                real[PHOTOS] = photos_fid(whole.real, training)
            rows |= real
        for kind in (kind for kind in KINDS if kind in entrant.generators):
            drawn = _samples(entrant.tokenizer, entrant.generators[kind], kind, training)
            rows[f"{kind} FID"] = _generation_fid(drawn, kind, training, setting)
            samples = samples or {"samples": _first(drawn), "samples_by": kind}
    shown = spread(len(whole.codes), num_shown)
    return replace(_pictures(entrant, whole, found, shown), **samples), rows


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


def prediction_rows(whole: Reconstructed, found: Predicted, size: tuple[int, int]) -> Rows:
    """What the AR transformer predicts given the true context; `size` is `code_size`'s."""
    p = found.prediction
    nats = _mean(p.cross_entropy.flatten(1).mean(1))
    names = {
        "prediction LPIPS": "lpips", "prediction, low layers": "low",
        "prediction, semantic layers": "semantic",
    }  # fmt: skip
    return {
        "AR cross-entropy": _scaled(nats, bits(1.0)),
        "AR bits per pixel": _scaled(nats, bits_per_pixel(1.0, *size)),
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


def code_rows(
    tokenizer: Tokenizer, whole: Reconstructed, training: Training, setting: Setting
) -> tuple[Rows, Tensor]:
    """How predictable the codes are for models that take seconds to fit; training counts (K,)."""
    codes, device = encode_all(tokenizer, training.source), tokenizer.last_layer.device
    _say(setting, "n-grams of codes: fitting")
    nats = position_nats(codes, whole.codes, whole.num_codes)
    per_image = {name: bits(1.0) * x.flatten(1).mean(1) for name, x in nats.items()}
    _say(setting, "small transformer: training")
    small = small_transformer(
        codes.to(device), whole.codes.to(device), whole.num_codes, SMALL_IMAGES, training.seed
    )
    rows = {
        "unigram": _mean(per_image["unigram"]),
        "n-gram": _mean(per_image["ngram"]),
        "n-gram gain": _mean(per_image["unigram"] - per_image["ngram"]),
        "small transformer": Value(bits(small)),
    }
    return rows, code_counts(codes, whole.num_codes)


def photos_fid(real: FeatureSet, training: Training) -> Value:
    """Held-out photos against the training images: as many as the samples, if there are."""
    if real.features is not None and len(real.features) > training.num_samples:
        features = real.features[spread(len(real.features), training.num_samples)]
        real = replace(real, gaussian=fit(features), features=features)
    distance = frechet_distance(training.features.gaussian, real.gaussian)
    return Value(distance, sample_interval(training.features, real))


def _say(setting: Setting, stage: str) -> None:
    """A line for a stage that takes long and counts nothing."""
    if setting.progress:
        setting.progress(stage, 1, 1)


@torch.no_grad()
def encode_all(tokenizer: Tokenizer, source: Source) -> Tensor:
    """Codes (N, h, w) on the CPU of every image of a source."""
    units = source.units(pieces(range(source.num), UNIT))
    return torch.cat([encoded(tokenizer, unit.pixels).cpu() for unit in units if len(unit.pixels)])


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
    _say(setting, f"{kind} FID: its interval, by bootstrap")
    distance = frechet_distance(training.features.gaussian, found.gaussian)
    return Value(distance, sample_interval(training.features, found))


def _first(drawn: Source) -> Tensor:
    """The first samples, to look at, in [-1, 1]: of a whole unit, as they were measured."""
    unit = next(drawn.units(iter([range(min(UNIT, drawn.num))])))
    return to_float(unit.pixels[:SHOWN_SAMPLES])


def _pictures(
    entrant: Entrant, whole: Reconstructed, found: Predicted | None, shown: Tensor
) -> Compared:
    """Pictures of the photos in the rows `shown` (n,)."""

    def decoded(codes: Tensor) -> Tensor:
        tokenizer = entrant.tokenizer
        with torch.no_grad(), strict_fp32():
            images = tokenizer.decode(codes.to(tokenizer.last_layer.device))
        return images.clamp(-1, 1).cpu()

    reconstructions = decoded(whole.codes[shown])
    if found is None:
        return Compared(entrant.name, entrant.subtitle, reconstructions)
    p = found.prediction
    return Compared(
        entrant.name,
        entrant.subtitle,
        reconstructions,
        predictions=decoded(p.codes[shown]),
        correct=p.correct[shown],
        entropy=p.entropy[shown],
    )


def _mean(values: Tensor) -> Value:
    return Value(float(values.double().mean()), mean_interval(values))


def _scaled(value: Value, factor: float) -> Value:
    spread = value.plus_minus
    return Value(value.value * factor, None if spread is None else spread * factor)


def _frechet(real: FeatureSet, fake: FeatureSet) -> Value:
    return Value(frechet_distance(real.gaussian, fake.gaussian), frechet_interval(real, fake))
