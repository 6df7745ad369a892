"""A recipe for test_rivals_training.py, opened by processes of their own."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from semvq.losses.perceptual import NO_PERCEPTUAL
from semvq.rivals.kmeans import KMeansQuantizerConfig
from semvq.training.recipe import Recipe
from semvq.training.task import Setting
from semvq.training.tokenizer_task import TokenizerTask, TokenizerTaskConfig
from tests.toy import toy_phase1

# 32 latents of each process a step: what is kept reaches back over the checkpoint after step 3
KMEANS = KMeansQuantizerConfig(num_codes=16, code_dim=8, every=2, until=4, kept=80, iterations=3)


class WatchedTask(TokenizerTask):
    """Every process leaves its codebook in the run's folder whenever one saves."""

    def __init__(self, config: TokenizerTaskConfig, setting: Setting) -> None:
        super().__init__(config, setting)
        self.file = setting.folder / f"codebook-{setting.world.rank}.pt"

    def state(self) -> dict[str, Tensor]:
        torch.save(self.tokenizer.quantizer.codebook.detach().clone(), self.file)
        return super().state()


@dataclass(frozen=True)
class WatchedTaskConfig(TokenizerTaskConfig):
    def open(self, setting: Setting) -> WatchedTask:
        return WatchedTask(self, setting)


def two_kmeans() -> Recipe:
    """Six steps; estimates in the second and the fourth, of two parts each."""
    recipe = toy_phase1(save_every="3 steps", log_every="1 step", accumulate=2, batch_size=4)
    tokenizer = replace(recipe.task.tokenizer, quantizer=KMEANS)
    fields: dict[str, Any] = {name: getattr(recipe.task, name) for name in ("data", "optim")}
    task = WatchedTaskConfig(tokenizer, **fields, perceptual=NO_PERCEPTUAL)
    return replace(recipe, name="two_kmeans", task=task)
