"""Optimiser, learning-rate schedule and weight averaging: small, explicit, resumable.

Adam with decoupled weight decay on matrices only; linear warm-up, then constant or cosine (D14).
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from semvq.config import Config
from semvq.training.sharding import part_like


@dataclass(frozen=True)
class OptimConfig(Config):
    """Settings of one player's AdamW; `clip_norm` None means no gradient clipping."""

    learning_rate: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.99
    weight_decay: float = 0.0
    warmup: str = "0 steps"
    schedule: Literal["constant", "cosine"] = "constant"
    clip_norm: float | None = None

    def build(self, parameters: Mapping[str, nn.Parameter]) -> torch.optim.AdamW:
        """AdamW over `parameters`; vectors and biases are never decayed."""
        matrices = [p for p in parameters.values() if p.ndim >= 2]
        vectors = [p for p in parameters.values() if p.ndim < 2]
        groups = [
            {"params": matrices, "weight_decay": self.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(
            [g for g in groups if g["params"]],
            lr=self.learning_rate,
            betas=(self.beta1, self.beta2),
            fused=True,
        )


def learning_rate(config: OptimConfig, seen: int, warmup: int, total: int) -> float:
    """Rate after `seen` of `total` images, the first `warmup` of them rising linearly."""
    if seen < warmup:
        return config.learning_rate * (seen + 1) / (warmup + 1)
    if config.schedule == "constant":
        return config.learning_rate
    share = (seen - warmup) / max(1, total - warmup)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as flat named tensors, for a checkpoint."""
    state = optimizer.state_dict()["state"]
    return {f"{i}.{key}": value for i, entry in state.items() for key, value in entry.items()}


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Inverse of `optimizer_tensors`; the optimiser must have been built the same way."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, key = name.split(".", 1)
        parameter = parameters[int(index)]
        own = part_like(parameter, tensor) if tensor.shape == parameter.shape else tensor
        state.setdefault(int(index), {})[key] = own
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )


class WeightAverage:
    """Exponential moving average of a player's trainable parameters.

    The decay warms up as (1 + t) / (10 + t), so that short runs are not held at their start.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.parameters = dict(parameters)
        self.decay = decay
        self.average = {n: p.detach().clone() for n, p in parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take the weights after optimiser step number `step`, counted from 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        current = [p.detach() for p in self.parameters.values()]
        torch._foreach_lerp_(list(self.average.values()), current, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the module holds the averaged weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        # values, not tensors: others hold on to where the weights are (FSDP2, CUDA graphs)
        for name, parameter in self.parameters.items():
            current = parameter.clone()
            parameter.copy_(self.average[name])
            self.average[name].copy_(current)
