"""What a comparison of tokenizers holds, checked as it is made, and which values are the best.

The page of it is written by comparison_page.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor, isfinite, log10
from typing import NamedTuple

import torch
from torch import Tensor

from semvq.probe.plots import Scatter


@dataclass(frozen=True, eq=False)
class Compared:
    """One tokenizer on N photos, with or without the transformer that predicts its codes."""

    name: str
    subtitle: str
    reconstructions: Tensor  # (N, 3, H, W) in [-1, 1], as the photos
    predictions: Tensor | None = None  # the same; teacher-forced
    correct: Tensor | None = None  # bool (N, h, w): whether the top-1 code was the true one
    entropy: Tensor | None = None  # float (N, h, w): of the predicted distribution, in nats
    samples: Tensor | None = None  # (M, 3, H', W'); the same M seeds for all tokenizers
    samples_by: str = ""  # what drew them: transformers of two kinds do not compare by eye

    def __post_init__(self) -> None:
        _check_images(f"{self.name}: reconstructions", self.reconstructions)
        for name in ("predictions", "samples"):
            if (images := getattr(self, name)) is not None:
                _check_images(f"{self.name}: {name}", images)
        _check_maps(self)


class Value(NamedTuple):
    """A figure's value and the half-width of its 95 % interval: 0 is exact, None is not known."""

    value: float
    plus_minus: float | None = None

    @property
    def interval(self) -> tuple[float, float]:
        """Its ends; one point where none is known."""
        return self.value - (self.plus_minus or 0.0), self.value + (self.plus_minus or 0.0)


@dataclass(frozen=True)
class Figure:
    """A row of the table: one value per tokenizer, in their order; None where there is none.

    `better` is "higher", "lower" or None (not rankable). `beside` names a row without which this
    one misleads: cross-entropy of codes says nothing unless one sees how well they reconstruct.
    """

    name: str
    values: Sequence[Value | None]
    unit: str = ""
    better: str | None = None
    note: str = ""
    beside: str | None = None
    baseline: float | None = None  # what two different photos have: no better is no merit

    def __post_init__(self) -> None:
        if self.better not in ("higher", "lower", None):
            raise ValueError(f"{self.name}: expected higher, lower or None, found {self.better!r}")
        for value in filter(None, self.values):
            numbers = (value.value, value.plus_minus or 0.0)
            if not all(map(isfinite, numbers)) or numbers[1] < 0:
                raise ValueError(
                    f"{self.name}: expected a finite value and an interval of at least 0, found "
                    f"{value.value} ± {value.plus_minus}"
                )

    def marks(self) -> list[str]:
        """Per value "best", "tied" or "".

        "best" where its interval overlaps no other's; else it and all that overlap it are "tied".
        Nothing is marked unless there are two values, every interval is known, and the best one
        lies clear of the baseline.
        """
        known = [v for v in self.values if v is not None]
        if self.better is None or len(known) < 2 or any(v.plus_minus is None for v in known):
            return [""] * len(self.values)
        best = (max if self.better == "higher" else min)(known, key=lambda v: v.value)
        if self.baseline is not None:
            low, high = best.interval
            if low <= self.baseline if self.better == "higher" else high >= self.baseline:
                return [""] * len(self.values)
        near = [v is not None and _overlap(v, best) for v in self.values]
        word = "best" if sum(near) == 1 else "tied"
        return [word if close else "" for close in near]

    def decimals(self) -> int:
        """Two digits of the row's smallest interval; without any, four of its largest value."""
        known = [v for v in self.values if v is not None]
        if errors := [v.plus_minus for v in known if v.plus_minus]:
            return _decimals(min(errors), digits=2)
        if all(float(v.value).is_integer() for v in known):
            return 0
        return _decimals(max(abs(v.value) for v in known), digits=4)


@dataclass(frozen=True, eq=False)
class Comparison:
    """Everything on the page; ValueError where its parts do not fit each other."""

    title: str
    lead: str
    photos: Tensor  # (N, 3, H, W) in [-1, 1]
    labels: Sequence[str]
    compared: Sequence[Compared]
    figures: Sequence[Figure] = ()
    scatters: Sequence[Scatter] = ()
    facts: Sequence[tuple[str, str]] = ()
    reading: str = ""  # stands above the figures: how to read them

    def __post_init__(self) -> None:
        _check_images("photos", self.photos)
        if len(self.labels) != len(self.photos):
            raise ValueError(
                f"expected a label per photo ({len(self.photos)}), found {len(self.labels)}"
            )
        _check_names("tokenizers", [c.name for c in self.compared])
        if not self.compared:
            raise ValueError("expected at least one tokenizer, found none")
        for one in self.compared:
            _check_fit(one, self.photos)
        sizes = {tuple(c.samples.shape) for c in self.compared if c.samples is not None}
        if len(sizes) > 1:
            raise ValueError(f"expected samples of one number and size, found {sorted(sizes)}")
        _check_names("figures", [f.name for f in self.figures])
        for figure in self.figures:
            _check_row(figure, self)

    def highest_entropy(self) -> float:
        """The end of the one colour scale of all tokenizers, in nats; 0 where there is none."""
        highest = (float(c.entropy.max()) for c in self.compared if c.entropy is not None)
        return max(highest, default=0.0)


def _decimals(number: float, digits: int) -> int:
    return min(max(0, digits - 1 - floor(log10(number))), 8)


def _overlap(a: Value, b: Value) -> bool:
    return a.interval[0] <= b.interval[1] and b.interval[0] <= a.interval[1]


def _check_images(name: str, images: Tensor) -> None:
    shape = tuple(images.shape)
    if len(shape) != 4 or shape[1] != 3 or 0 in shape:
        raise ValueError(f"{name}: expected (N, 3, H, W), found {shape}")
    if not images.is_floating_point():
        raise ValueError(f"{name}: expected floats in [-1, 1], found {images.dtype}")
    if not images.isfinite().all():
        raise ValueError(f"{name}: expected finite pixels, found others")


def _check_maps(one: Compared) -> None:
    """The maps lie over predictions, and over the same codes."""
    maps = {"correct": one.correct, "entropy": one.entropy}
    shown = {name: values for name, values in maps.items() if values is not None}
    if shown and one.predictions is None:
        raise ValueError(f"{one.name}: expected predictions with {' and '.join(shown)}, found none")
    for name, values in shown.items():
        if values.ndim != 3 or 0 in values.shape:
            raise ValueError(f"{one.name}: expected {name} (N, h, w), found {tuple(values.shape)}")
    if len({values.shape for values in shown.values()}) > 1:
        shapes = [tuple(values.shape) for values in shown.values()]
        raise ValueError(f"{one.name}: expected one shape of correct and entropy, found {shapes}")
    if one.correct is not None and one.correct.dtype != torch.bool:
        raise ValueError(f"{one.name}: expected correct as bool, found {one.correct.dtype}")
    if one.entropy is not None and not (one.entropy.isfinite() & (one.entropy >= 0)).all():
        raise ValueError(f"{one.name}: expected finite entropy of at least 0, found other values")


def _check_fit(one: Compared, photos: Tensor) -> None:
    """A tokenizer's pictures belong to these photos."""
    for name in ("reconstructions", "predictions"):
        images = getattr(one, name)
        if images is not None and images.shape != photos.shape:
            raise ValueError(
                f"{one.name}: expected {name} as the photos, {tuple(photos.shape)}, "
                f"found {tuple(images.shape)}"
            )
    for name in ("correct", "entropy"):
        values = getattr(one, name)
        if values is not None and len(values) != len(photos):
            raise ValueError(
                f"{one.name}: expected {name} of {len(photos)} photos, found {len(values)}"
            )


def _check_names(what: str, names: Sequence[str]) -> None:
    if len(set(names)) != len(names) or "" in names:
        raise ValueError(f"expected a name of its own for each of the {what}, found {names}")


def _check_row(figure: Figure, comparison: Comparison) -> None:
    num = len(comparison.compared)
    if len(figure.values) != num:
        raise ValueError(
            f"{figure.name}: expected a value or None per tokenizer ({num}), "
            f"found {len(figure.values)}"
        )
    if figure.beside is None:
        return
    rows = {row.name: row for row in comparison.figures if row is not figure}
    if figure.beside not in rows:
        raise ValueError(
            f"{figure.name}: expected {figure.beside!r} in the same table, found {list(rows)}"
        )
    for one, value, other in zip(comparison.compared, figure.values, rows[figure.beside].values):
        if value is not None and other is None:
            raise ValueError(
                f"{figure.name}: expected {figure.beside!r} of {one.name} too, found none"
            )
