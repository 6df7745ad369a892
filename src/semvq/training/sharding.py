"""A player split over the processes: PyTorch's FSDP2, for transformers too large for each of them.

Every process keeps its part of the weights, gradients, optimiser state and average; a block's
weights are whole while it works. The checkpoint is the one of an undivided player.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from semvq.training.distributed import World


class Split:
    """FSDP2 around `module` and each of its `parts`; used as `GradientMeans` is.

    To be made before the optimiser, for the parameters are other ones after it. `entry` is the
    method of the module by which a training step passes through all of it. Gradients become means
    in every backward pass: kept whole until the last one, they would take all that is saved.
    ValueError where PyTorch is too old.
    """

    def __init__(
        self, world: World, module: nn.Module, parts: Iterable[nn.Module], entry: str
    ) -> None:
        # a second to import, for nobody else
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

        if not hasattr(FSDPModule, "set_reshard_after_forward"):
            raise ValueError(
                f"loop.split: expected a newer torch (2.11 will do), found {torch.__version__}; "
                "upgrade it, or leave --set loop.split out"
            )
        world.copy_from_writer(module.state_dict().values())
        mesh = init_device_mesh(next(module.parameters()).device.type, (world.count,))
        self.whole: Any = module
        self.units: tuple[Any, ...] = (*parts, module)  # the inner ones first
        for unit in self.units:
            fully_shard(unit, mesh=mesh)
        if entry != "forward":  # that one is known; twice would gather the outer weights twice
            register_fsdp_forward_method(module, entry)

    def expect(self) -> None:
        """Nothing: see the class."""

    def finish(self) -> None:
        """Nothing: see the class."""

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Inside, every process has all weights, and none waits for another in a forward pass.

        A state dict of the module divides them again.
        """
        for unit in self.units:
            unit.set_reshard_after_forward(False, recurse=False)
            unit.unshard()
        try:
            yield
        finally:
            for unit in self.units:
                unit.reshard()
                unit.set_reshard_after_forward(unit is not self.whole, recurse=False)


def is_split(tensor: Tensor) -> bool:
    """Whether a process has but a part of it."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Any) -> Tensor:
    """All of it, in every process, which all must ask for it; an undivided one is itself."""
    return tensor.full_tensor() if is_split(tensor) else tensor


def part_like(own: Any, found: Tensor) -> Tensor:
    """This process's part of the whole tensor `found`, divided as `own` is."""
    if not is_split(own):
        return found
    from torch.distributed.tensor import distribute_tensor

    here = found.to(own.device)
    part = distribute_tensor(here, own.device_mesh, own.placements, src_data_rank=None)
    # copied: a view, as some versions give it, would hold the whole tensor
    return torch.empty_like(own).copy_(part)
