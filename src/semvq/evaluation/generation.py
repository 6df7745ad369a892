"""Protocol `generation`: how samples lie beside training images (Sec. 4.2, Table 3 and 4).

FID, KID, precision, recall, density, coverage and a classifier's score, each beside two controls
where there are images to make them from: codes drawn alone from their unigram distribution, which a
model has to beat, and held-out photos, which no model can be asked to beat.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from semvq.evaluation.classifier_score import ClassifierScore
from semvq.evaluation.feature_sets import FeatureSet, FeatureSums
from semvq.evaluation.frechet import frechet_distance
from semvq.evaluation.kernel import kernel_distance
from semvq.evaluation.neighbours import DENSITY_K, neighbour_figures
from semvq.evaluation.reconstruction import Figures, encoded
from semvq.evaluation.sources import Images, Source
from semvq.evaluation.streaming import Results, Setting, in_order, one_thread
from semvq.tokenizer.model import Tokenizer

SPLITS = 10


def generation(
    samples: Source,
    reference: FeatureSet | None,
    setting: Setting,
    controls: Mapping[str, Source] | None = None,
) -> Figures:
    """Figures of the samples and, with a prefix, of each control, at the writer.

    `reference` is None at processes that only help. Figures that need pairs of images are left out
    where the reference has none.
    """
    if samples.num < 2:
        raise ValueError(
            f"expected at least 2 samples for a distance between distributions, found {samples.num}"
        )
    if reference is not None and reference.gaussian.num:
        yield "num_reference_images", reference.gaussian.num
    for prefix, source in {"": samples, **(controls or {})}.items():
        title = f"measuring {prefix or 'samples'}"
        score = ClassifierScore(source.num, SPLITS) if _is_scored(setting, source) else None
        found = measure(source, setting, title, score=score)
        if found is not None and reference is not None:
            with one_thread():
                for name, value in sample_figures(found, reference, score):
                    yield f"{prefix}_{name}" if prefix else name, value


def _is_scored(setting: Setting, source: Source) -> bool:
    return setting.net is not None and setting.net.logits is not None and source.num >= SPLITS


def sample_figures(
    found: FeatureSet, reference: FeatureSet, score: ClassifierScore | None
) -> Figures:
    """Figures of one set of images against the reference."""
    yield "num_images", found.gaussian.num
    yield "fid", frechet_distance(reference.gaussian, found.gaussian)
    real, fake = reference.features, found.features
    if real is not None and fake is not None and min(len(real), len(fake)) > DENSITY_K:
        distance = kernel_distance(fake, real)
        yield "kid", distance.value
        yield "kid_error", distance.error
        yield from neighbour_figures(real, fake).items()
    if score is not None and score.is_complete:
        mean, std = score.result()
        yield "score", mean
        yield "score_std", std


def measure(
    source: Source,
    setting: Setting,
    title: str,
    num_classes: int = 0,
    score: ClassifierScore | None = None,
) -> FeatureSet | None:
    """Features of every image of a source; None at processes that only help."""
    sums = FeatureSums(num_classes)

    def compute(unit: Images) -> Results:
        return {"features": setting.features(unit.pixels), "labels": unit.labels}

    def consume(results: Results) -> None:
        sums.add(results["features"], results["labels"])
        if score is not None and setting.net is not None:
            with one_thread():
                score.add(setting.net.class_logits(results["features"]))

    in_order(source, compute, consume, setting, title)
    if not setting.world.is_writer:
        return None
    return sums.result(setting.feature_facts(source.side, source.facts()))


def count_codes(tokenizer: Tokenizer, source: Source, setting: Setting) -> Tensor:
    """How often each code occurs in the images of a source: int64 (K,), at every process."""
    device = tokenizer.last_layer.device
    counts = torch.zeros(tokenizer.num_codes, dtype=torch.int64)

    def compute(unit: Images) -> Results:
        codes = encoded(tokenizer, unit.pixels)
        return {"counts": torch.bincount(codes.flatten().cpu(), minlength=len(counts))}

    def consume(results: Results) -> None:
        counts.add_(results["counts"])

    in_order(source, compute, consume, setting, "encoding")
    shared = counts.to(device)
    setting.world.copy_from_writer([shared])
    return shared.cpu()


def classes_like(counts: Tensor | None, num: int, num_classes: int) -> Tensor:
    """Classes (num,) of samples: as often as in `counts`, or equally often where it is None.

    After every sample each class is within one sample of its share (the chairman assignment,
    Tijdeman 1980): of the classes below theirs, the one comes next that would be a whole sample
    behind first. Equal shares take turns in the order of the classes. Zeros for no classes.
    """
    if num_classes < 2:
        return torch.zeros(num, dtype=torch.int64)
    counts = torch.ones(num_classes, dtype=torch.int64) if counts is None else counts
    weights, total = counts.numpy().astype(np.int64), int(counts.sum())
    behind = np.zeros_like(weights)  # shares less samples so far, times `total`
    with np.errstate(divide="ignore"):  # of a class without images: never
        deadline = total / weights
    found = np.empty(num, np.int64)
    for i in range(num):
        behind += weights
        chosen = int(np.where(behind > 0, deadline, np.inf).argmin())
        behind[chosen] -= total
        deadline[chosen] += total / weights[chosen]
        found[i] = chosen
    return torch.from_numpy(found)
