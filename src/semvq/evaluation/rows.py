"""The rows of a comparison: what a figure is called, how it is read, and what stands beside it."""

from collections.abc import Sequence
from dataclasses import dataclass

from semvq.probe.comparison import Figure, Value
from semvq.probe.plots import Point, Scatter

QUALITY = "PSNR"  # the row that stands beside every cross-entropy
Rows = dict[str, Value]


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
    "small transformer": Row("bits/code", "lower", "2 layers, trained for 500 steps", QUALITY),
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
