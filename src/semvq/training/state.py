"""Everything that changes while a run trains, and how it becomes a checkpoint and comes back."""

from typing import Any

import torch
from torch import Tensor

from semvq.training.distributed import World
from semvq.training.identity import AFRESH, Fact, check_facts
from semvq.training.optim import WeightAverage, load_optimizer_tensors, optimizer_tensors
from semvq.training.sharding import is_split, part_like, whole
from semvq.training.task import Task


class TrainingState:
    """Modules, optimisers, averages and counters of one run.

    There is no random state in it: every micro-batch seeds its own (see `seed_step`), so what it
    draws is a function of (seed, its number) and a resumed run draws what an unbroken one would.
    """

    def __init__(self, task: Task, ema_decay: float, world: World) -> None:
        self.task, self.world = task, world
        self.optimizers = {p.name: p.optim.build(p.parameters()) for p in task.players}
        self.averages = {
            p.name: WeightAverage(p.parameters(), ema_decay) for p in task.players if p.averaged
        }
        self.step = 0
        self.images_seen = 0
        self.skipped = 0
        self.skipped_in_a_row = 0
        # (sum, count) of every logged scalar since the last log line; here because a resumed run
        # must log what an unbroken one would
        self.window: dict[str, Tensor] = {}

    def gradient_norms(self, device: torch.device) -> dict[str, Tensor]:
        """Norm of all gradients of each player; 0 for one that has none in this step."""
        norms: dict[str, Tensor] = {}
        for player in self.task.players:
            grads = [p.grad for p in player.parameters().values() if p.grad is not None]
            total = whole(torch.nn.utils.get_total_norm(grads)) if grads else None
            norms[player.name] = torch.zeros((), device=device) if total is None else total
        return norms

    def move(self, norms: dict[str, Tensor], rates: dict[str, float]) -> None:
        """One optimiser step of every player, clipped where it asks for that, then the averages."""
        for player in self.task.players:
            if player.optim.clip_norm is not None:
                torch.nn.utils.clip_grads_with_norm_(
                    player.parameters().values(), player.optim.clip_norm, norms[player.name]
                )
            for group in self.optimizers[player.name].param_groups:
                group["lr"] = rates[player.name]
            self.optimizers[player.name].step()
        for average in self.averages.values():
            average.update(self.step + 1)

    def note(self, logs: dict[str, Tensor]) -> None:
        """Add scalars to the log window, without waiting for the device."""
        for key, value in logs.items():
            pair = torch.stack([value.detach().float(), torch.ones_like(value, dtype=torch.float)])
            self.window[key] = self.window[key] + pair if key in self.window else pair

    def close_window(self) -> dict[str, float]:
        """Means over the log window, which starts anew."""
        means = {k: float(pair[0] / pair[1]) for k, pair in self.window.items()}
        self.window = {}
        return means

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor a resumed run needs, by flat name; called in every process.

        What is split over processes is whole in the writing one alone, and on the CPU there.
        """
        found = self._own()
        for name, tensor in found.items():
            if is_split(tensor):
                full = whole(tensor)
                found[name] = full.cpu() if self.world.is_writer else tensor
        return found

    def equalize(self) -> None:
        """Give every process the writing one's tensors; those that are split were equal before."""
        self.world.copy_from_writer(t for t in self._own().values() if not is_split(t))

    def _own(self) -> dict[str, Tensor]:
        out: dict[str, Tensor] = {}
        for player in self.task.players:
            name = player.name
            out |= {f"module.{name}.{k}": v for k, v in player.module.state_dict().items()}
            optim = optimizer_tensors(self.optimizers[name])
            out |= {f"optim.{name}.{k}": v for k, v in optim.items()}
            if name in self.averages:
                average = self.averages[name].average
                out |= {f"average.{name}.{k}": v for k, v in average.items()}
        out |= {f"window.{k}": v for k, v in self.window.items()}
        return out | {f"task.{k}": v for k, v in self.task.state().items()}

    def scalars(self) -> dict[str, Any]:
        """The counters, and the facts that must hold on resume."""
        return {
            "step": self.step,
            "images_seen": self.images_seen,
            "skipped": self.skipped,
            "skipped_in_a_row": self.skipped_in_a_row,
            "identity": self._identity(),
        }

    def _identity(self) -> dict[str, Fact]:
        return self.task.identity() | {"number of processes": Fact(str(self.world.count))}

    def load(self, tensors: dict[str, Tensor], scalars: dict[str, Any]) -> None:
        """Take back a checkpoint. ValueError names any fact that differs from this run's."""
        lead = "cannot resume: the checkpoint was made with"
        check_facts(scalars["identity"], self._identity().items(), lead, AFRESH)
        for player in self.task.players:
            name = player.name
            own = player.module.state_dict()
            found = _under(tensors, f"module.{name}.")
            player.module.load_state_dict(
                {k: part_like(own[k], v) if k in own else v for k, v in found.items()}
            )
            load_optimizer_tensors(self.optimizers[name], _under(tensors, f"optim.{name}."))
            if name in self.averages:
                average = self.averages[name].average
                for key, value in _under(tensors, f"average.{name}.").items():
                    average[key].copy_(part_like(average[key], value))
        device = next(iter(self.task.players[0].parameters().values())).device
        self.window = {k: v.to(device) for k, v in _under(tensors, "window.").items()}
        self.task.load_state(_under(tensors, "task."))
        self.step, self.images_seen = scalars["step"], scalars["images_seen"]
        self.skipped, self.skipped_in_a_row = scalars["skipped"], scalars["skipped_in_a_row"]


def seed_step(seed: int, step: int, rank: int = 0) -> None:
    """Seed torch for one micro-batch of one process; mixed, so that neighbours share none."""
    mixed = seed * 0x9E3779B1 + step * 0x85EBCA77 + rank * 0xC2B2AE3D27D4EB4F + 0x165667B1
    torch.manual_seed(mixed & 0x7FFF_FFFF_FFFF_FFFF)


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
