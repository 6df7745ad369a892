"""Steps of a task, one at a time, with what the loop does in each: `semvq.training.loop.train`.

The loop itself cannot be stopped between two steps and taken up again in turn with another, so its
paragraphs are repeated here; a test holds the two together, weight by weight. Left out are reading
a batch, the log and the checkpoints.
"""

from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from semvq.config import duration_in_images
from semvq.kernels.compiling import compile_parts
from semvq.training.distributed import World
from semvq.training.loop import LoopConfig
from semvq.training.optim import learning_rate
from semvq.training.state import TrainingState, seed_step
from semvq.training.task import Task


class Steps:
    """A training in one process, between two of its steps; nothing is accumulated."""

    def __init__(self, fabric: Fabric, task: Task, loop: LoopConfig) -> None:
        assert loop.accumulate == 1
        self.fabric, self.task, self.loop = fabric, task, loop
        self.state = TrainingState(task, loop.ema_decay, World())
        self.total = self._images(loop.duration)
        self.warmups = {p.name: self._images(p.optim.warmup) for p in task.players}
        compile_parts(
            task.to_compile(), loop.compile, fabric.device, _refuse,
            deterministic=loop.deterministic,
        )  # fmt: skip

    def step(self, batch: dict[str, Any]) -> Tensor:
        """Losses and gradient norms of the players, in their order."""
        state, task = self.state, self.task
        seed_step(self.loop.seed, state.step)
        losses: list[Tensor] = []
        logs: list[dict[str, Tensor]] = []
        with self.fabric.autocast():
            for turn in task.turns(batch, state.images_seen):
                self.fabric.backward(turn.loss)
                losses.append(turn.loss.detach())
                logs.append(turn.logs)
        norms = state.gradient_norms(self.fabric.device)
        looked_at = torch.stack([*losses, *norms.values()])
        assert bool(torch.isfinite(looked_at).all()), "the loop would update nothing"
        seen, total = state.images_seen, self.total
        rates = {
            p.name: learning_rate(p.optim, seen, self.warmups[p.name], total) for p in task.players
        }
        state.move(norms, rates)
        for entry in logs:
            state.note(entry)
        for player in task.players:
            player.module.zero_grad(set_to_none=True)
        state.step += 1
        state.images_seen += self.loop.batch_size
        return looked_at

    def _images(self, duration: str) -> int:
        size, epoch = self.loop.batch_size, self.task.epoch_size
        total = duration_in_images(self.loop.duration, size, epoch)
        return duration_in_images(duration, size, epoch, total)


def _refuse(line: str) -> None:
    """The loop would say so and go on; here something else would be timed."""
    raise RuntimeError(line)
