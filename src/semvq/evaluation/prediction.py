"""Protocols `likelihood` and `probe`: what a transformer knows of held-out codes (Sec. 3.2).

A cross-entropy alone misleads, because a tokenizer that lost the content has the easiest codes: the
quality of the tokenizer's reconstructions always stands beside it.
"""

from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor

from semvq.evaluation.feature_sets import FeatureSet, FeatureSums
from semvq.evaluation.features import strict_fp32
from semvq.evaluation.frechet import frechet_distance
from semvq.evaluation.reconstruction import (
    Figures,
    ImageDistances,
    Reconstructed,
    encoded,
    reconstruct_all,
    reconstruction_quality,
)
from semvq.evaluation.sources import Images, Source, rounded
from semvq.evaluation.streaming import Results, Setting, in_chunks, in_order, one_thread
from semvq.generators.base import Generator
from semvq.metrics import bits, bits_per_pixel
from semvq.probe.calibration import expected_calibration_error
from semvq.probe.masked import RATIOS, predict_masked
from semvq.probe.teacher_forcing import Prediction, predict
from semvq.tokenizer.model import Tokenizer

MASK_SEED = 0
CHUNK = 32  # images whose cross-entropy is taken at a time


@dataclass(frozen=True)
class Predicted:
    """Predictions of all images, each figure (N, h, w), and what decoding them shows.

    `images` are the decoded predictions' features, `per_image` their distances from the images, as
    in `Reconstructed`. `masked` (N, h, w) is what was hidden, None for teacher forcing.
    """

    prediction: Prediction
    masked: Tensor | None
    images: FeatureSet
    per_image: dict[str, Tensor]


def likelihood(
    generator: Generator, tokenizer: Tokenizer, source: Source, setting: Setting
) -> Figures:
    """Validation bits per code and per pixel, with the tokenizer's quality, at the writer.

    AR: the exact cross-entropy. NAR: the mean over the fixed masks by which training is judged; it
    is no likelihood, and not to be compared with an AR model's.
    """
    found = reconstruct_all(tokenizer, source, setting)
    if found is None:
        return
    with one_thread():
        yield "num_images", len(found.codes)
        yield from reconstruction_quality(found)
    nats = _mean_cross_entropy(generator, found)
    kind = "ar" if generator.causal else "nar_masked"
    yield f"{kind}_nats_per_code", nats
    yield f"{kind}_bits_per_code", bits(nats)
    yield f"{kind}_bits_per_pixel", bits_per_pixel(nats, *code_size(tokenizer))


def code_size(tokenizer: Tokenizer) -> tuple[int, int]:
    """Pixels per side of a place, and codes per place."""
    return tokenizer.config.factor, tokenizer.quantizer.codes_per_place


def _mean_cross_entropy(generator: Generator, found: Reconstructed) -> float:
    total = 0.0
    with strict_fp32():
        for codes, classes in _batches(generator, found):
            total += float(generator.evaluation_loss(codes, classes)) * len(codes)
    return total / len(found.codes)


def _batches(generator: Generator, found: Reconstructed) -> list[tuple[Tensor, Tensor | None]]:
    device, conditional = generator.device, bool(generator.config.num_classes)
    return [
        (codes.to(device), labels.to(device) if conditional else None)
        for codes, labels in zip(found.codes.split(CHUNK), found.labels.split(CHUNK))
    ]


def probe(generator: Generator, tokenizer: Tokenizer, source: Source, setting: Setting) -> Figures:
    """Everything `predict` shows, over a validation set, at the writer.

    AR: teacher-forced top-1 predictions. NAR: predictions of masked codes at several mask ratios,
    each figure with the ratio in its name.
    """
    whole = reconstruct_all(tokenizer, source, setting)
    if whole is not None:
        with one_thread():
            yield "num_images", len(whole.codes)
            yield from reconstruction_quality(whole)
            yield "rfid", frechet_distance(whole.real.gaussian, whole.fake.gaussian)
            yield "reconstruction_low", float(whole.per_image["low"].double().mean())
            yield "reconstruction_semantic", float(whole.per_image["semantic"].double().mean())
    ratios = (None,) if generator.causal else RATIOS
    for ratio in ratios:
        found = predict_all(generator, tokenizer, source, setting, ratio)
        if whole is not None and found is not None:
            suffix = "" if ratio is None else f"_masked_{ratio:g}"
            with one_thread():
                for name, value in probe_figures(whole, found, tokenizer):
                    yield name + suffix, value


def probe_figures(whole: Reconstructed, found: Predicted, tokenizer: Tokenizer) -> Figures:
    """Figures of one pass of predictions of the tokenizer's codes."""
    p = found.prediction
    seen = torch.ones_like(p.correct) if found.masked is None else found.masked
    nats = float(p.cross_entropy[seen].double().mean())
    yield "cross_entropy_nats_per_code", nats
    yield "bits_per_code", bits(nats)
    if found.masked is None:
        yield "bits_per_pixel", bits_per_pixel(nats, *code_size(tokenizer))
    yield "top1_accuracy", float(p.correct[seen].double().mean())
    yield "top5_accuracy", float(p.in_top5[seen].double().mean())
    yield "mean_entropy_nats", float(p.entropy[seen].double().mean())
    yield "calibration_error", expected_calibration_error(p.confidence[seen], p.correct[seen])
    yield "prediction_fid", frechet_distance(whole.real.gaussian, found.images.gaussian)
    for name in ("psnr", "lpips", "low", "semantic"):
        yield f"prediction_{name}", float(found.per_image[name].double().mean())


def predict_all(
    generator: Generator,
    tokenizer: Tokenizer,
    source: Source,
    setting: Setting,
    ratio: float | None = None,
) -> Predicted | None:
    """Predict the codes of every image and decode the predictions; None at helping processes.

    `ratio` None is teacher forcing by an AR generator, else the mask ratio for a NAR one.
    """
    device, conditional = tokenizer.last_layer.device, bool(generator.config.num_classes)
    distances = ImageDistances(device)
    features = FeatureSums()
    gathered: dict[str, list[Tensor]] = defaultdict(list)

    def decoded(codes: Tensor, pixels: Tensor) -> Results:
        images = rounded(tokenizer.decode(codes))
        return distances(images, pixels) | {"images": images}

    @torch.no_grad()
    def compute(unit: Images) -> Results:
        with strict_fp32():
            codes = encoded(tokenizer, unit.pixels)
            classes = unit.labels.to(device) if conditional else None
            if ratio is None:
                found, hidden = predict(generator, codes, classes), None
            else:
                found, hidden = predict_masked(
                    generator, codes, classes, ratio, MASK_SEED, first_index=unit.first
                )
            results = in_chunks(decoded, found.codes, unit.pixels)
        images = results.pop("images")
        results |= {f"prediction.{name}": x.cpu() for name, x in found._asdict().items()}
        if hidden is not None:
            results["masked"] = hidden.cpu()
        return results | {"features": setting.features(images)}

    def consume(results: Results) -> None:
        features.add(results.pop("features"))
        for name, value in results.items():
            gathered[name].append(value)

    title = "predicting" if ratio is None else f"predicting {ratio:.0%} of the codes"
    in_order(source, compute, consume, setting, title)
    if not setting.world.is_writer:
        return None
    columns = {name: torch.cat(parts) for name, parts in gathered.items()}
    prediction = Prediction(*(columns.pop(f"prediction.{name}") for name in Prediction._fields))
    masked = columns.pop("masked", None)
    facts = setting.feature_facts(source.side, source.facts())
    return Predicted(prediction, masked, features.result(facts), columns)
