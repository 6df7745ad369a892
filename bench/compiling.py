"""What torch.compile would give a tokenizer's step, part by part. `loop.compile` leaves it alone.

    python -m bench.compiling [patchgan|stylegan|phase2 …] [--device cpu|cuda] [--seconds 3]

Each variant in a process of its own: nothing compiled; the levels of encoder and decoder; the
perceptual networks; both. Images per second over whole cycles of steps, and the first cycle's
seconds, in which everything is compiled. Discriminators stay eager: R1 needs second derivatives.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from bench.case import Setting
from bench.command import Parser, above_zero, need_cuda
from bench.measure import in_fresh_process, synchronize
from bench.tasks import open_tokenizer_task, phase1, phase2
from bench.training import Steps
from semvq.config import unknown
from semvq.training.distributed import start_engine
from semvq.training.recipe import Recipe
from semvq.training.tokenizer_task import TokenizerTask

RECIPES: dict[str, Callable[[Setting], Recipe]] = {
    "patchgan": partial(phase1, gan="patchgan"),
    "stylegan": partial(phase1, gan="stylegan"),
    "phase2": phase2,
}
VARIANTS = ("nothing", "levels", "perceptual", "both")
CYCLE = 16  # steps, with one R1 penalty where there is one


def main(words: list[str] | None = None) -> None:
    """See the head of this file."""
    p = Parser("python -m bench.compiling", __doc__)
    p.add_argument("recipes", nargs="*", metavar="RECIPE", help=", ".join(RECIPES))
    p.add_argument("--device", choices=("cpu", "cuda"), default="cuda", help="(%(default)s)")
    p.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS)
    p.add_argument("--seconds", type=above_zero, default=3.0, help="of timing per variant")
    p.add_argument("--quick", action="store_true", help="smaller sizes")
    options = p.parse_args(words)
    for name in options.recipes:
        if name not in RECIPES:
            p.error(unknown("recipe", name, list(RECIPES)))
    if options.device == "cuda":
        need_cuda(p, "give --device cpu")
    setting = Setting.of(options.device, options.quick)
    for name in options.recipes or RECIPES:
        for variant in options.variants:
            found = in_fresh_process(measure, name, variant, setting, options.seconds)
            print(f"{name}, compiled {variant}: {found}", flush=True)


def measure(name: str, variant: str, setting: Setting, seconds: float) -> str:
    """Images per second, and the seconds of the first cycle."""
    recipe = RECIPES[name](setting)
    recipe = replace(recipe, loop=replace(recipe.loop, compile="on"))
    fabric, _ = start_engine(torch.device(setting.device), recipe.loop.precision)
    torch.manual_seed(0)
    task = open_tokenizer_task(setting, recipe)
    chosen = parts(task, variant)
    task.to_compile = lambda: chosen  # type: ignore[method-assign]
    size = recipe.loop.batch_size
    side = task.tokenizer.config.resolution
    pixels = setting.integers(256, size, 3, side, side).to(torch.uint8)
    steps = Steps(fabric, task, recipe.loop)
    times: list[float] = []
    try:
        while len(times) < 2 or sum(times[1:]) < seconds:
            synchronize(setting)
            began = time.perf_counter()
            for _ in range(CYCLE):
                steps.step({"image": pixels})
            synchronize(setting)
            times.append(time.perf_counter() - began)
    except Exception as error:  # a variant that cannot be compiled is a result too
        return f"{type(error).__name__}: {str(error)[:200]}"
    rate = size * CYCLE / statistics.median(times[1:])
    return f"{rate:.1f} images/s, first {CYCLE} steps {times[0]:.0f} s"


def parts(task: TokenizerTask, variant: str) -> list[nn.Module]:
    """What is compiled, each on its own."""
    tokenizer: Any = task.tokenizer
    levels = [*tokenizer.encoder.levels, *tokenizer.decoder.levels]
    seen: Any = task.perceptual
    networks = [seen.features, seen.classifier.features]
    wanted = {"levels": levels, "perceptual": networks, "both": [*levels, *networks]}
    return wanted.get(variant, [])


if __name__ == "__main__":
    main()
