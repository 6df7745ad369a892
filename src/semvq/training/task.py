"""The seam between the one loop and the four trainings: tasks and their players.

A task owns the models, the data and the losses of one training; a player is a part of it with an
optimiser of its own (a tokenizer has an autoencoder and a discriminator, a generator is alone).
The loop never asks which task it runs.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from semvq.config import Config
from semvq.training.distributed import World
from semvq.training.identity import Fact
from semvq.training.optim import OptimConfig

Logs = dict[str, Tensor]


@dataclass
class Player:
    """A module with an optimiser of its own; only its parameters that require grad move."""

    name: str
    module: nn.Module
    optim: OptimConfig
    averaged: bool = True  # whether an EMA of the weights is kept, evaluated and exported
    parts: tuple[nn.Module, ...] = ()  # what may be split over processes, see `sharding`
    entry: str = "forward"  # the method by which a turn passes through the module

    def parameters(self) -> dict[str, nn.Parameter]:
        """Trainable parameters by name."""
        return {n: p for n, p in self.module.named_parameters() if p.requires_grad}


class Turn(NamedTuple):
    """One player's share of a step: a scalar loss to minimise and named scalars to log."""

    player: str
    loss: Tensor
    logs: Logs


@dataclass(frozen=True)
class Setting:
    """Where a task finds its inputs; paths are None where the command line names none.

    `upstream_recipe` names, for messages, the recipe that `upstream` should be a run of.
    """

    folder: Path
    data: Path | None
    val: Path | None
    tokens: Path | None
    upstream: Path | None
    device: torch.device
    seed: int
    batch_size: int
    duration: str
    world: World = World()
    upstream_recipe: str = "its upstream recipe"


class Task(ABC):
    """What the loop needs to know of a training."""

    players: list[Player]
    dataset: Dataset
    epoch_size: int
    unreadable: tuple[str, ...] = ()  # files that it left out, known after an evaluation

    @abstractmethod
    def identity(self) -> dict[str, Fact]:
        """Named facts (data, code space) that must be the same when a run is resumed."""

    @abstractmethod
    def turns(self, batch: dict[str, Any], images_seen: int) -> Iterator[Turn]:
        """Yield one `Turn` per moving player; the loop runs its backward before asking on."""

    @abstractmethod
    def evaluate(self) -> Iterator[tuple[str, float]]:
        """Figures on the held-out data, with the weights as they stand.

        Called in every process; each judges its part, and all return the same.
        """

    def to_compile(self) -> Iterable[nn.Module]:
        """Modules that `turns` calls and that pay for torch.compile, each compiled on its own.

        Their first derivatives must do: compiled code has no second ones (R1, the GAN's weight).
        """
        return ()

    def gauges(self) -> dict[str, float]:
        """Figures since the last log line, called in every process.

        Asked for only when a line is due, as they may wait for the device.
        """
        return {}

    @abstractmethod
    def pictures(self) -> Tensor | None:
        """An image grid, float in [-1, 1], (3, H, W), of how training goes; or None.

        Called in the writing process alone, so it must not wait for others.
        """

    @abstractmethod
    def export(self, folder: Path) -> None:
        """Write `model.safetensors` and `config.json` for inference; the writing process alone."""

    def start(self, batches: Iterator[dict[str, Any]]) -> None:  # noqa: B027
        """Initialise from data once, before the first step (codebook, loss scales)."""

    def state(self) -> dict[str, Tensor]:
        """Tensors beyond modules and optimisers that a resumed run needs; in every process."""
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take back what `state` gave, in place."""
        own = self.state()
        check_names(own, state)
        for name, tensor in state.items():
            own[name].copy_(tensor)


def check_names(own: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    """ValueError unless a checkpoint's task state has the names of this task's own."""
    if own.keys() != found.keys():
        raise ValueError(f"expected task state {sorted(own)}, found {sorted(found)}")


@dataclass(frozen=True)
class TaskConfig(Config):
    """Base of the task configurations; `open` loads what the task needs and returns it."""

    def open(self, setting: Setting) -> Task:
        """Build the task; raises ValueError or FileNotFoundError on missing input."""
        raise NotImplementedError
