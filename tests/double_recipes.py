"""The toy phase 1 in double precision, for test_processes.py: importing this file switches to it.

In single precision a tokenizer's training is chaotic: a rounding error of 1e-7 moves a code within
a few steps, and one moved code moves the loss by percents. Here every `.float()` of the package
means double, so that two runs that should agree do, and one that is wrong cannot hide behind
rounding.
"""

from dataclasses import replace

import torch

from semvq.losses.perceptual import PerceptualConfig, PerceptualLoss
from semvq.training import tokenizer_task
from semvq.training.recipe import Recipe
from tests.process_recipes import many_phase1

torch.set_default_dtype(torch.float64)
torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]
tokenizer_task.CALIBRATION_BATCHES = 2  # VGG in double precision takes seconds for each
_load = PerceptualConfig.load


def _load_in_double(self: PerceptualConfig) -> PerceptualLoss:
    return _load(self).double()


PerceptualConfig.load = _load_in_double  # type: ignore[method-assign]


def double_phase1() -> Recipe:
    """At the paper's rate of 1e-4."""
    recipe = many_phase1()
    gan = recipe.task.adversarial
    task = replace(
        recipe.task,
        optim=replace(recipe.task.optim, learning_rate=1e-4),
        adversarial=replace(gan, optim=replace(gan.optim, learning_rate=1e-4)),
    )
    return replace(recipe, name="double_phase1", task=task)
