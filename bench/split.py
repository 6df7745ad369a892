"""A transformer's step on several GPUs: all weights on each of them, or split over them (FSDP2).

    torchrun --nproc-per-node=2 -m bench.split [--device cpu|cuda] [--quick] [--steps 20]

One turn each, with the same weights and random codes: images per second of all processes, peak
memory of one, and how far the losses and gradient norms of all steps are apart. The paper's AR-L at
its batch size of 256 (`--quick`: a small one).
"""

import argparse
import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bench.case import Setting
from bench.measure import synchronize
from semvq.kernels.compiling import compile_parts
from semvq.recipes import find_recipe
from semvq.training.distributed import World, start_engine
from semvq.training.gradients import means_of
from semvq.training.optim import OptimConfig
from semvq.training.state import TrainingState, seed_step
from semvq.training.task import Player

WARM_UP = 5
WAYS = {"whole": False, "split": True}


def main() -> None:
    """See the head of this file."""
    p = argparse.ArgumentParser("python -m bench.split", description=__doc__)
    p.add_argument("--device", choices=("cpu", "cuda"), default="cuda", help="(%(default)s)")
    p.add_argument("--quick", action="store_true", help="a smaller size")
    p.add_argument("--steps", type=int, default=20, help="timed (%(default)s)")
    p.add_argument("--compile", choices=("auto", "on", "off"), default="auto")
    options = p.parse_args()
    setting = Setting.of(options.device, options.quick)
    fabric, world = start_engine(torch.device(options.device), setting.precision)
    found = {way: measure(fabric, world, setting, options, split) for way, split in WAYS.items()}
    apart = (found["whole"][1] - found["split"][1]).abs().amax(0).tolist()
    if world.is_writer:
        for way, (line, _) in found.items():
            print(f"{way}: {line}")
        print(
            f"apart in {options.steps + WARM_UP} steps: losses {apart[0]:.2g}, norms {apart[1]:.2g}"
        )


def measure(
    fabric: Any, world: World, setting: Setting, options: argparse.Namespace, split: bool
) -> tuple[str, Tensor]:
    """What a person wants to know; and (steps, 2) losses and gradient norms, means over all."""
    recipe = find_recipe("imagenet256_ar_l")
    config = recipe.task.generator
    size = recipe.loop.batch_size
    if setting.scale != "paper":
        size = 4 * world.count
        config = replace(config, num_layers=4, width=128, num_heads=4, num_codes=256)
    torch.manual_seed(0)
    model = config.build().to(fabric.device)
    player = Player("transformer", model, OptimConfig(), parts=tuple(model.blocks))
    means = means_of(world, player, split)
    task: Any = argparse.Namespace(players=[player])
    state = TrainingState(task, 0.999, world)
    parts = (*model.blocks, model.cross_entropy)
    compile_parts(parts, options.compile, fabric.device, print)
    torch.manual_seed(world.rank)
    grid = (size // world.count, config.grid_height, config.grid_width)
    codes = torch.randint(config.num_codes, grid).to(fabric.device)
    classes = torch.randint(config.num_classes, grid[:1]).to(fabric.device)
    figures, began = [], 0.0
    for step in range(WARM_UP + options.steps):
        if step == WARM_UP:
            synchronize(setting)
            began = time.perf_counter()
        seed_step(0, step, world.rank)
        means.expect()
        with fabric.autocast():
            loss, _ = model.training_loss(codes, classes)
            loss.backward()
        means.finish()
        norms = state.gradient_norms(fabric.device)
        figures.append(torch.stack([world.mean(loss.detach()), *norms.values()]))
        state.move(norms, {"transformer": 1e-4})
        model.zero_grad(set_to_none=True)
        state.step += 1
    synchronize(setting)
    rate = options.steps * size / (time.perf_counter() - began)
    line = f"{rate:,.1f} images/s, {world.count} processes"
    if fabric.device.type == "cuda":
        line += f", peak {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB each"
        del model, player, means, task, state, loss
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return line, torch.stack(figures)


if __name__ == "__main__":
    main()
