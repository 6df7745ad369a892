"""Recipes of one's own, outside the package: other widths, and another quantizer rule.

Finite scalar quantization (Mentzer et al. 2023): every latent channel is rounded to one of a few
levels, so there is no codebook to learn. Train both with

    semvq train examples/my_recipe.py:my_phase1 --data PHOTOS
    semvq train examples/my_recipe.py:my_ar --data PHOTOS --set task.generator.num_classes=3

and name this file wherever such a run is opened:

    semvq sample runs/my_ar --code examples/my_recipe.py
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from semvq.recipes.fruit import fruit_ar, fruit_phase1
from semvq.tokenizer.quantize import Quantized, Quantizer, QuantizerConfig, straight_through
from semvq.training.recipe import Recipe

LEVELS = (7, 5, 5, 3)


@dataclass(frozen=True)
class ScalarQuantizerConfig(QuantizerConfig):
    """`levels` values per channel, odd; their product is the number of codes."""

    num_codes: int = math.prod(LEVELS)
    code_dim: int = len(LEVELS)
    levels: tuple[int, ...] = LEVELS

    def build(self) -> "ScalarQuantizer":
        """ValueError where rounding would not reach just these levels, or the sizes differ."""
        if any(n < 3 or n % 2 == 0 for n in self.levels):
            raise ValueError(f"levels: expected odd numbers from 3 on, found {list(self.levels)}")
        needed = (math.prod(self.levels), len(self.levels))
        if (self.num_codes, self.code_dim) != needed:
            raise ValueError(
                f"levels {list(self.levels)}: expected num_codes {needed[0]} and code_dim "
                f"{needed[1]}, found {self.num_codes} and {self.code_dim}; set them too"
            )
        return ScalarQuantizer(self)


class ScalarQuantizer(Quantizer):
    """Rounds tanh of every channel to its levels; a code is the number its digits make."""

    def __init__(self, config: ScalarQuantizerConfig) -> None:
        super().__init__(config)
        steps = [math.prod(config.levels[:i]) for i in range(len(config.levels))]
        reach = [(n - 1) / 2 for n in config.levels]
        self.register_buffer("reach", torch.tensor(reach).view(1, -1, 1, 1))
        self.register_buffer("steps", torch.tensor(steps).view(1, -1, 1, 1))

    def forward(self, latents: Tensor) -> Quantized:
        bounded = latents.float().tanh()
        digits = (bounded * self.reach).round() / self.reach
        return Quantized(self.encode(latents), straight_through(bounded, digits), {})

    def encode(self, latents: Tensor) -> Tensor:
        digits = (latents.float().tanh() * self.reach).round() + self.reach
        return (digits.long() * self.steps).sum(1)

    def lookup(self, codes: Tensor) -> Tensor:
        levels = (2 * self.reach + 1).long()
        digits = codes.unsqueeze(1) // self.steps % levels
        return (digits - self.reach) / self.reach


def my_phase1() -> Recipe:
    """The demo's phase 1 with wider top levels and the quantizer above."""
    recipe = fruit_phase1()
    tokenizer = replace(
        recipe.task.tokenizer, multipliers=(1, 2, 3), quantizer=ScalarQuantizerConfig()
    )
    task = replace(recipe.task, tokenizer=tokenizer)
    # the demo's warm-up has other widths, so this one starts from nothing
    return replace(recipe, name="my_phase1", task=task, upstream=None)


def my_ar() -> Recipe:
    """The demo's AR transformer on those codes."""
    recipe = fruit_ar()
    generator = replace(recipe.task.generator, num_codes=math.prod(LEVELS))
    task = replace(recipe.task, generator=generator)
    return replace(recipe, name="my_ar", upstream="my_phase1", task=task)
