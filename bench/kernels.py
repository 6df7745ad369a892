"""What each trick of the sampling kernels gives, and which tiles suit a dense layer.

    python -m bench.kernels [--rows N …] [--seconds S]
    python -m bench.kernels tiles --rows N [--seconds S]

First: a step of the AR transformer in the middle of its sequence, for N samples at a time, with and
without each trick. Second: each of a block's four dense layers alone, for N rows, by PyTorch and by
`linear` with one tile after the other, the quickest first. bfloat16, the paper's sizes, a captured
graph of all blocks (so that weights come from memory, but for `proj`, whose 28 MB may stay in the
card's cache), median microseconds of replays. Needs CUDA. The figures at the head of
`semvq/kernels/decoding.py` are from here.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor, nn
from triton.runtime.errors import OutOfResources

from bench.case import Setting
from bench.command import Parser, above_zero, need_cuda, one_or_more
from bench.measure import seconds_of
from bench.table import wide_console
from bench.tasks import generator, generator_config
from semvq.kernels import decoding, sampling
from semvq.kernels.capture import Captured
from semvq.kernels.decoding import Tile

ROWS = (1, 16, 64, 256)
ALL, NONE = 10**9, 0
TURNS, BEST = 5, 8

Changes = dict[str, Any]  # names of `decoding` or `sampling`, and what stands in their place
VARIANTS: dict[str, Changes] = {
    "PyTorch's dense layers": {"FEW_ROWS": NONE, "SOME_ROWS": NONE},
    "`linear` for all rows": {"FEW_ROWS": NONE, "SOME_ROWS": ALL},
    "the library's choice without early starts": {"launch": lambda device: {"EARLY": False}},
    "the library's choice, weights not asked for early": {"_FETCH": False},
    "the library's choice": {},
}


def main(words: list[str] | None = None) -> None:
    """See the head of this file."""
    p = Parser("python -m bench.kernels", __doc__)
    p.add_argument("what", nargs="?", choices=("steps", "tiles"), default="steps")
    p.add_argument(
        "--rows", type=one_or_more, nargs="+", default=ROWS, metavar="N", help="at a time"
    )
    p.add_argument("--seconds", type=above_zero, default=0.3, help="of timing for each figure")
    options = p.parse_args(words)
    need_cuda(p, "these kernels run on nothing else")
    setting = Setting.of("cuda", quick=False)
    model: Any = generator(setting, generator_config(setting, "ar"))
    with torch.no_grad():
        if options.what == "steps":
            steps(model, options.rows, setting, options.seconds)
            return
        for num in options.rows:
            for layer in ("qkv", "proj", "first", "second"):
                tiles(model, layer, num, setting, options.seconds)


# --- steps -----------------------------------------------------------------------------------


def steps(model: Any, rows: tuple[int, ...], setting: Setting, seconds: float) -> None:
    """A table: variants down, samples at a time across."""
    table = Table("AR step, microseconds", *(str(num) for num in rows), box=None)
    for name, changes in VARIANTS.items():
        times = []
        for num in rows:
            with changed(changes):
                times.append(f"{microseconds(a_step(model, num, setting), seconds, setting):,.0f}")
        table.add_row(name, *times)
    wide_console().print(table)


def a_step(model: Any, num: int, setting: Setting) -> Callable[[], Any]:
    """All blocks and the head, for `num` samples in the middle of their sequences."""
    cache = model.new_cache(num)
    cache.position.fill_(model.config.length // 2 - 1)
    x = setting.random(num, model.config.width).to(setting.dtype)
    return partial(Captured(lambda x: sampling.step(model, x, cache), (x,), ()), x)


@contextmanager
def changed(changes: Changes) -> Iterator[None]:
    """With other choices in the kernels' modules."""
    with ExitStack() as stack:
        for name, value in changes.items():
            module = sampling if hasattr(sampling, name) else decoding
            stack.enter_context(patch.object(module, name, value))
        yield


# --- tiles -----------------------------------------------------------------------------------


def tiles(model: Any, layer: str, num: int, setting: Setting, seconds: float) -> None:
    """A table for one of a block's layers: PyTorch's, then the best tiles and splits."""
    layers = [parts_of(block)[layer] for block in model.blocks]
    wide, width = layers[0].weight.shape
    x = setting.random(num, width).to(setting.dtype)
    gelu = layer == "first"
    found: dict[str, float] = {}

    def timed(call: Callable[[nn.Linear], Tensor]) -> float:
        graph = partial(Captured(lambda x: [call(one) for one in layers], (x,), ()), x)
        return microseconds(graph, seconds, setting) / len(layers)

    theirs = timed(lambda one: F.gelu(one(x)) if gelu else one(x))
    for tile in tiles_for(num):
        for splits in splits_for(layer):
            ours = partial(_linear, x=x, gelu=gelu, splits=splits)
            name = f"{splits} x {tuple(tile)}"
            with patch.object(decoding, "tile_of", partial(_always, tile)):
                try:
                    found[name] = timed(ours)
                except OutOfResources as error:  # more memory than a multiprocessor has
                    print(f"{name}: {error}", file=sys.stderr)
    title = f"{num} rows, {layer} ({width} to {wide}): splits x tile"
    table = Table(title, "microseconds", box=None)
    table.add_row("PyTorch's layer", f"{theirs:.2f}")
    for name in sorted(found, key=lambda name: found[name])[:BEST]:
        table.add_row(name, f"{found[name]:.2f}")
    wide_console().print(table)


def _linear(layer: nn.Linear, x: Tensor, gelu: bool, splits: int) -> Tensor:
    return decoding.linear(x, layer.weight, layer.bias, gelu=gelu, splits=splits)


def _always(tile: Tile, num: int) -> Tile:
    return tile


def parts_of(block: Any) -> dict[str, nn.Linear]:
    """A block's dense layers by name."""
    attention, (first, _, second) = block.attention, block.mlp
    return {"qkv": attention.qkv, "proj": attention.proj, "first": first, "second": second}


def tiles_for(num: int) -> list[Tile]:
    """Those that do not leave most of their rows empty."""
    heights = [r for r in (16, 64, 128) if r < 2 * max(num, 16) and (r >= 64 or num < 64)]
    shapes = ((16, 64, 4, 6), (16, 128, 4, 4), (32, 64, 4, 6), (32, 128, 4, 4), (64, 64, 4, 4))
    if num > 64:
        shapes = ((32, 64, 4, 5), (64, 64, 4, 4), (64, 64, 8, 4), (64, 128, 8, 3), (128, 64, 8, 4))
    found = [Tile(rows, *shape) for rows in heights for shape in shapes]
    return list(dict.fromkeys([decoding.tile_of(num), *found]))


def splits_for(layer: str) -> tuple[int, ...]:
    """GELU needs the whole sum; the layers before a norm may leave parts to it."""
    return {"qkv": (1,), "proj": (1, 2, 4), "first": (1,), "second": (1, 2, 4, 8)}[layer]


def microseconds(call: Callable[[], Any], seconds: float, setting: Setting) -> float:
    """The median of a few turns."""
    first = max(seconds_of(call, 3, setting), 1e-6)
    repeats = max(1, int(seconds / TURNS / first))
    return sorted(seconds_of(call, repeats, setting) for _ in range(TURNS))[TURNS // 2] * 1e6


if __name__ == "__main__":
    main()
