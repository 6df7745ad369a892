"""How cost grows: the exponent of seconds per image in resolution, codes, length and batch.

    python -m bench growth [--device cpu|cuda] [--quick] [--precision bf16|fp32] [--json FILE]

An exponent is the slope of a straight line through log seconds over log size, by least squares; the
points stand beside it. All that is timed is the library's.
"""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from rich.table import Table
from torch import Tensor

from bench.case import Setting
from bench.code_rows import inputs
from bench.command import Parser, add_setting, setting_of
from bench.measure import seconds_of
from bench.table import digits, wide_console
from bench.tasks import generator, generator_config, tokenizer
from semvq.tokenizer.nearest import nearest_code

REPEATS = 3


class Curve(NamedTuple):
    """What is timed against what: (size, call, images per call) for every point."""

    name: str
    against: str
    points: Callable[[Setting], Iterator[tuple[int, Callable[[], Tensor], int]]]


def resolution(setting: Setting, what: str) -> Iterator[tuple[int, Callable[[], Tensor], int]]:
    """Encoding or decoding squares of growing sides."""
    model = tokenizer(setting)
    factor = model.config.factor
    for side in setting.pick((64, 128, 256, 512), (64, 128, 256), (32, 64, 128), (16, 32)):
        batch = setting.pick(8, 2, 1, 1)
        images = setting.random(batch, 3, side, side)
        codes = setting.integers(model.num_codes, batch, side // factor, side // factor)
        call = partial(model.encode, images) if what == "encode" else partial(model.decode, codes)
        yield side, call, batch


def codes(setting: Setting) -> Iterator[tuple[int, Callable[[], Tensor], int]]:
    """The search among growing codebooks, for as many rows."""
    width = inputs(setting, 1024)[0].shape[1]
    rows = setting.random(setting.pick(65_536, 4096, 512, 64), width)
    for num in setting.pick(
        (1024, 4096, 16_384, 65_536, 262_144), (1024, 4096, 16_384), (1024, 4096, 16_384), (64, 256)
    ):
        yield num, partial(nearest_code, rows, setting.random(num, width, seed=1)), 1


def length(setting: Setting, kind: str) -> Iterator[tuple[int, Callable[[], Tensor], int]]:
    """Sampling growing grids."""
    batch = setting.pick(16, 4, 4, 2)
    for side in setting.pick((8, 12, 16, 24), (4, 6, 8, 12), (3, 4, 6, 8), (2, 3)):
        config = generator_config(setting, kind)
        config = replace(config, grid_height=side, grid_width=side)
        model = generator(setting, config)
        classes = setting.integers(config.num_classes, batch)
        yield side * side, partial(model.sample, batch, classes), batch


def batch(setting: Setting, kind: str) -> Iterator[tuple[int, Callable[[], Tensor], int]]:
    """Sampling or encoding growing batches: -1 where only the call costs, 0 where images do."""
    sizes = setting.pick((1, 4, 16, 64, 256), (1, 4, 16, 64), (1, 4, 16), (1, 2))
    if kind == "encode":
        tokens = tokenizer(setting)
        side = tokens.config.resolution
        for num in sizes:
            yield num, partial(tokens.encode, setting.random(num, 3, side, side)), num
        return
    model = generator(setting, generator_config(setting, kind))
    for num in sizes:
        classes = setting.integers(model.config.num_classes, num)
        yield num, partial(model.sample, num, classes), num


CURVES = (
    Curve("encode", "resolution", partial(resolution, what="encode")),
    Curve("decode", "resolution", partial(resolution, what="decode")),
    Curve("encode", "batch", partial(batch, kind="encode")),
    Curve("nearest", "codes", codes),
    Curve("sample-ar", "length", partial(length, kind="ar")),
    Curve("sample-nar", "length", partial(length, kind="nar")),
    Curve("sample-ar", "batch", partial(batch, kind="ar")),
    Curve("sample-nar", "batch", partial(batch, kind="nar")),
)


def main(words: list[str]) -> int:
    """See the head of this file."""
    p = Parser("python -m bench growth", __doc__)
    add_setting(p)
    p.add_argument("--json", type=Path, metavar="FILE")
    options = p.parse_args(words)
    found = measure(setting_of(p, options))
    table = Table("row", "against", "exponent", "ms per image at each size", box=None)
    for curve in found:
        points = ", ".join(f"{x}: {digits(1e3 * s)}" for x, s in curve["points"])
        table.add_row(curve["name"], curve["against"], f"{curve['exponent']:.2f}", points)
    wide_console().print(table)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


@torch.no_grad()
def measure(setting: Setting) -> list[dict]:
    """Every curve with its points (size, seconds per image) and exponent, JSON-ready."""
    found = []
    for curve in CURVES:
        points = []
        for size, call, images in curve.points(setting):
            with setting.autocast() if curve.name in ("encode", "decode") else torch.no_grad():
                call()
                best = min(seconds_of(call, 1, setting) for _ in range(REPEATS))
            points.append((size, best / images))
        found.append(
            {
                "name": curve.name,
                "against": curve.against,
                "exponent": exponent(points),
                "points": points,
            }
        )
    return found


def exponent(points: list[tuple[int, float]]) -> float:
    """Slope of log y over log x by least squares; of two points or more."""
    logs = [(math.log(x), math.log(y)) for x, y in points]
    mean_x, mean_y = (sum(axis) / len(logs) for axis in zip(*logs))
    above = sum((x - mean_x) * (y - mean_y) for x, y in logs)
    return above / sum((x - mean_x) ** 2 for x, _ in logs)
