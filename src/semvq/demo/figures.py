"""Everything the demo measures and draws, on held-out photos and on samples.

Reconstruction, frozen codes, what the transformers know about the codes, and whether samples look
like the class they were asked for, always beside a control.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from semvq.backbones.mobilenet import load_mobilenet_v2
from semvq.data.images import DataConfig, ImageSet, eval_batches, image_grid, to_float
from semvq.data.order import spread
from semvq.data.tokens import TokenCache
from semvq.evaluation.agreement import LinearClassifier, accuracy, class_agreement, features
from semvq.generators.base import Generator
from semvq.generators.files import load_generator
from semvq.losses.perceptual import PerceptualConfig, PerceptualLoss
from semvq.metrics import (
    chroma_r2,
    class_unigram_entropy,
    code_usage,
    perplexity,
    psnr,
    unigram_cross_entropy,
    unigram_entropy,
)
from semvq.probe.panels import panel
from semvq.probe.teacher_forcing import predict
from semvq.recipes.fruit import SAMPLING
from semvq.runs import open_tokenizer
from semvq.tokenizer.model import Tokenizer

SAMPLES_OF_CLASS = 15  # per generator and control
NUM_SHOWN = 8  # photos in the rows of the report
SAMPLES_SHOWN = 4  # of every class, where there are so many
CHUNK = 32
BATCH = 70  # samples drawn at a time
NO_DIFFERENCE = 0.002  # LPIPS; four times the largest gain of three seeds (EXPERIMENTS.md)

Figures = dict[str, Any]
Pictures = dict[str, Tensor]


@dataclass(frozen=True)
class Photos:
    """All centre-cropped photos of a split: images (N, 3, H, W), labels (N,), class names."""

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]


@torch.no_grad()
def collect(
    out: Path, train: Path, val: Path, *, seed: int, sparseness: int = 1
) -> tuple[Figures, Pictures]:
    """All figures for metrics.json and all picture grids for the report; on the CPU.

    Of the samples, one of `sparseness` is drawn, and at least one of every class.
    """
    names = ("fruit_phase1", "fruit_phase2", "fruit_phase2_control")
    tokenizers = {name: open_tokenizer(out / name, torch.device("cpu")) for name in names}
    config = DataConfig(resolution=tokenizers["fruit_phase1"].config.resolution)
    held_out = load_photos(val, config)
    generators = {name: load_generator(out / f"fruit_{name}") for name in ("ar", "nar")}

    figures: Figures = {"num_held_out": len(held_out.images), "classes": list(held_out.classes)}
    figures["reconstruction"], pictures = reconstruction(tokenizers, held_out)
    figures["codes"] = codes_are_frozen(tokenizers, held_out)
    cache = TokenCache.open(out / "fruit_ar" / "tokens" / "train")
    train_codes, train_labels = cache.read(range(len(cache)))
    figures["prediction"], found = prediction(
        generators["ar"], tokenizers["fruit_phase2"], held_out, train_codes
    )
    pictures["probe"] = found
    per_class = max(1, SAMPLES_OF_CLASS // sparseness)
    labels = torch.arange(per_class * len(held_out.classes)) % len(held_out.classes)
    samples = draw_samples(
        generators, tokenizers["fruit_phase2"], train_codes, train_labels, labels, seed
    )
    figures["class_agreement"] = agreement(samples, load_photos(train, config), held_out)
    for name, (images, labels) in samples.items():
        pictures[f"samples_{name}"] = first_of_each_class(images, labels)
    return figures, pictures


def load_photos(path: Path, config: DataConfig) -> Photos:
    """Centre crops of a whole split."""
    image_set = ImageSet.open(path)
    batches = list(eval_batches(image_set, config, CHUNK))
    images = to_float(torch.cat([b["image"] for b in batches]))
    return Photos(images, torch.cat([b["label"] for b in batches]), image_set.classes)


def reconstruction(tokenizers: dict[str, Tokenizer], photos: Photos) -> tuple[Figures, Pictures]:
    """PSNR, colour and LPIPS (VGG16, v0.1) of every tokenizer, and rows of photos to look at."""
    lpips = PerceptualConfig(alpha=0.0, form="lpips").load()
    figures: Figures = {}
    shown = spread(len(photos.images), NUM_SHOWN)
    rows = [photos.images[shown]]
    for name, tokenizer in tokenizers.items():
        images = reconstruct(tokenizer, photos.images)
        figures[name] = {
            "psnr": float(psnr(images, photos.images).mean()),
            "chroma_r2": chroma_r2(images, photos.images),
            "lpips": _mean_distance(lpips, images, photos.images),
        }
        rows.append(images[shown])
    gain = figures["fruit_phase2_control"]["lpips"] - figures["fruit_phase2"]["lpips"]
    figures["attention_verdict"] = attention_verdict(gain)
    return figures, {"reconstruction": image_grid(torch.cat(rows), columns=NUM_SHOWN)}


def attention_verdict(gain: float) -> str:
    """What `gain` in LPIPS over the equal-images control says, and that it is one seed's."""
    if abs(gain) < NO_DIFFERENCE:
        return f"attention decoder and equal-images control do not differ ({gain:+.4f} LPIPS)"
    word = "ahead of" if gain > 0 else "behind"
    return f"attention decoder {word} the equal-images control by {abs(gain):.4f} LPIPS, one seed"


def codes_are_frozen(tokenizers: dict[str, Tokenizer], photos: Photos) -> Figures:
    """Usage of the codebook on held-out photos, and that phase 2 changed none of their codes."""
    first, second = tokenizers["fruit_phase1"], tokenizers["fruit_phase2"]
    before, after = encode(first, photos.images), encode(second, photos.images)
    num_codes = first.quantizer.num_codes
    return {
        "num_codes": num_codes,
        "usage": code_usage(before, num_codes),
        "perplexity": perplexity(before, num_codes),
        "changed_by_phase2": int((before != after).sum()),
        "same_code_space_hash": first.code_space_hash() == second.code_space_hash(),
    }


def prediction(
    ar: Generator, tokenizer: Tokenizer, photos: Photos, train_codes: Tensor
) -> tuple[Figures, Tensor]:
    """Sec. 3.2 on held-out photos: cross-entropy and top-1 accuracy beside the unigram bars."""
    codes = encode(tokenizer, photos.images)
    parts = [predict(ar, c, y) for c, y in zip(codes.split(CHUNK), photos.labels.split(CHUNK))]
    num_codes = tokenizer.quantizer.num_codes
    figures = {
        "ar_cross_entropy": float(torch.cat([p.cross_entropy for p in parts]).mean()),
        "ar_top1_accuracy": float(torch.cat([p.correct for p in parts]).float().mean()),
        "unigram_entropy": unigram_entropy(codes, num_codes),
        "class_unigram_entropy": class_unigram_entropy(codes, photos.labels, num_codes),
        "unigram_cross_entropy": unigram_cross_entropy(train_codes, codes, num_codes),
        "unit": "nats per code",
    }
    pick = spread(len(codes), NUM_SHOWN)
    found = predict(ar, codes[pick], photos.labels[pick])
    picture = panel(
        photos.images[pick], tokenizer.decode(codes[pick]), tokenizer.decode(found.codes), found
    )
    return figures, picture


def draw_samples(
    generators: dict[str, Generator],
    tokenizer: Tokenizer,
    train_codes: Tensor,
    train_labels: Tensor,
    labels: Tensor,
    seed: int,
) -> dict[str, tuple[Tensor, Tensor]]:
    """Images and classes (`labels`) of both generators and of two controls without any context.

    The controls draw every code independently: from the unigram distribution of the training
    codes, and from that of the class asked for.
    """
    codes = {
        name: torch.cat(
            [
                g.sample(len(y), y, seed, first_index=i * BATCH, **SAMPLING)
                for i, y in enumerate(labels.split(BATCH))
            ]
        )
        for name, g in generators.items()
    }
    codes["unigram"] = unigram_codes(train_codes, train_labels, labels, seed, by_class=False)
    codes["class_unigram"] = unigram_codes(train_codes, train_labels, labels, seed, by_class=True)
    return {name: (decode(tokenizer, c), labels) for name, c in codes.items()}


def unigram_codes(
    train_codes: Tensor, train_labels: Tensor, labels: Tensor, seed: int, *, by_class: bool
) -> Tensor:
    """Codes (len(labels), h, w), each drawn at random from the training codes (of its class)."""
    generator = torch.Generator().manual_seed(seed)
    out = torch.empty(len(labels), *train_codes.shape[1:], dtype=torch.int64)
    for label in labels.unique():
        pool = train_codes[train_labels == label] if by_class else train_codes
        wanted = labels == label
        shape = (int(wanted.sum()), *train_codes.shape[1:])
        out[wanted] = pool.flatten()[torch.randint(pool.numel(), shape, generator=generator)]
    return out


def agreement(
    samples: dict[str, tuple[Tensor, Tensor]], train: Photos, held_out: Photos
) -> Figures:
    """Class agreement of every kind of sample, with the classifier's own accuracy beside it."""
    backbone = load_mobilenet_v2()
    num_classes = len(held_out.classes)
    with torch.enable_grad():
        classifier = LinearClassifier(features(backbone, train.images), train.labels, num_classes)
    real = accuracy(classifier.predict(features(backbone, held_out.images)), held_out.labels)
    figures = {
        name: class_agreement(backbone, classifier, images, labels)
        for name, (images, labels) in samples.items()
    }
    return figures | {
        "real_held_out": real,
        "chance": 1 / num_classes,
        "num_samples": len(samples["ar"][1]),
        "sampling": ", ".join(f"{k} {v}" for k, v in SAMPLING.items()),
        "classifier": "logistic regression on frozen MobileNetV2 features",
    }


def first_of_each_class(images: Tensor, labels: Tensor) -> Tensor:
    """Grid with one column per class and `SAMPLES_SHOWN` rows."""
    num_classes = int(labels.max()) + 1
    picks = [torch.nonzero(labels == c)[:SAMPLES_SHOWN, 0] for c in range(num_classes)]
    order = torch.stack(picks, dim=1).flatten()
    return image_grid(images[order], columns=num_classes)


def reconstruct(tokenizer: Tokenizer, images: Tensor) -> Tensor:
    """Through the codes and back, in chunks."""
    return decode(tokenizer, encode(tokenizer, images))


def encode(tokenizer: Tokenizer, images: Tensor) -> Tensor:
    """Codes of images, in chunks."""
    return torch.cat([tokenizer.encode(x) for x in images.split(CHUNK)])


def decode(tokenizer: Tokenizer, codes: Tensor) -> Tensor:
    """Images of codes, in chunks."""
    return torch.cat([tokenizer.decode(c).float() for c in codes.split(CHUNK)])


def _mean_distance(distance: PerceptualLoss, a: Tensor, b: Tensor) -> float:
    parts = [distance(x, y)[0] * len(x) for x, y in zip(a.split(CHUNK), b.split(CHUNK))]
    return float(torch.stack(parts).sum() / len(a))
