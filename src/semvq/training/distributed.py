"""The processes of one run (D16): started by torchrun or srun, joined by Lightning Fabric.

Every process has the same weights and its own part of each batch, in the order of the ranks; what
depends on the whole batch (gradients, usage entropy, figures) goes through here. One process is
the case of count 1, where everything is the identity.
"""

import atexit
import logging
from collections.abc import Iterable
from signal import SIGTERM
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from semvq.launch import find_launch

if TYPE_CHECKING:
    from lightning_fabric import Fabric

# named here, or Fabric takes a batch script on a cluster for one of several processes
_ENVIRONMENTS = {"nobody": "Lightning", "torchrun": "TorchElastic", "srun": "SLURM"}
PRECISIONS: dict[str, Any] = {"fp32": "32-true", "bf16": "bf16-mixed"}


class World:
    """Rank and count of processes, and the sums and means over them."""

    def __init__(self, rank: int = 0, count: int = 1) -> None:
        self.rank, self.count = rank, count

    @property
    def is_writer(self) -> bool:
        """Whether this is the one process that writes files and speaks for all."""
        return self.rank == 0

    def mean(self, x: Tensor) -> Tensor:
        """Mean over processes, the same on each; gradients flow back to every one of them."""
        return x if self.count == 1 else _Sum.apply(x) / self.count

    def total(self, x: Tensor) -> Tensor:
        """Sum over processes, without gradient; `x` is left as it is."""
        if self.count == 1:
            return x
        x = x.detach().clone()
        torch.distributed.all_reduce(x)
        return x

    def gather(self, x: Tensor) -> Tensor:
        """Equally long parts (n, ...) of all processes as one (count * n, ...), by rank."""
        if self.count == 1:
            return x
        parts = [torch.empty_like(x) for _ in range(self.count)]
        torch.distributed.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    def to_writer(self, items: list[Any]) -> list[Any]:
        """The items of all processes, by rank, at the writing one; none at the others."""
        if self.count == 1:
            return items
        parts: list[Any] | None = [None] * self.count if self.is_writer else None
        torch.distributed.gather_object(items, parts)
        return [item for part in parts or [] for item in part]

    def copy_from_writer(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite each of `tensors` by the writing process's: equal weights, whatever a kernel

        of one device rounded otherwise.
        """
        if self.count > 1:
            for tensor in tensors:
                torch.distributed.broadcast(tensor.detach(), 0)

    def wait(self) -> None:
        """Go on when every process is here."""
        if self.count > 1:
            torch.distributed.barrier()

    def share(self, num: int) -> range:
        """This process's part of 0 … num - 1, in one piece; the parts differ by one at most."""
        return range(num * self.rank // self.count, num * (self.rank + 1) // self.count)

    def agree(
        self, losses: list[Tensor], logs: list[dict[str, Tensor]], asked: int
    ) -> tuple[list[Tensor], list[dict[str, Tensor]], int]:
        """Losses and logs as means over processes; the signal that any of them was sent, or 0.

        One small reduction a step, so that the guard, the log and the end are the same everywhere.
        """
        if self.count == 1:
            return losses, logs, asked
        told = torch.tensor(float(asked), device=losses[0].device)
        values = [*losses, *(v for entry in logs for v in entry.values()), told]
        means = self.mean(torch.stack([v.detach().float().reshape(()) for v in values])).unbind()
        rest = iter(means[len(losses) :])
        shared = [{name: next(rest) for name in entry} for entry in logs]
        # the guard waits for the device in this step anyway
        signalled = bool(means[-1] > 0)
        return list(means[: len(losses)]), shared, (asked or SIGTERM) if signalled else 0


class _Sum(torch.autograd.Function):
    """Sum over processes; its gradient is the sum of theirs, for each has a part in all results."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """`x` is left as it is."""
        total = x.clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """By the same sum, so that it can be differentiated again."""
        return _Sum.apply(gradients[0])


def join(device: torch.device) -> tuple[torch.device, World]:
    """This process's device and those started with it, for a command that trains nothing."""
    if find_launch().world_size == 1:
        return device, World()
    fabric, world = start_engine(device)
    return fabric.device, world


def start_engine(device: torch.device, precision: str = "fp32") -> "tuple[Fabric, World]":
    """Join the processes that were started with this one, if any were; once per program."""
    from lightning_fabric import Fabric, plugins  # as slow to import as all else together

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # no banner
    by, _, count, local = find_launch()
    fabric = Fabric(
        accelerator=device.type,
        devices=local,
        num_nodes=count // local,
        strategy="ddp" if count > 1 else "auto",
        precision=PRECISIONS[precision],
        plugins=getattr(plugins.environments, f"{_ENVIRONMENTS[by]}Environment")(),
    )
    fabric.launch()
    if count > 1 and device.type == "cpu":  # Fabric does so for GPUs; gloo's threads may abort
        atexit.register(torch.distributed.destroy_process_group)
    return fabric, World(fabric.global_rank, fabric.world_size)
