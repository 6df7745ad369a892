"""What started this process, alone or with others: torchrun, or SLURM's srun; without torch."""

import os
from typing import Literal, NamedTuple

TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")


class Launch(NamedTuple):
    """This process's number, and how many there are in all and on this host."""

    by: Literal["nobody", "torchrun", "srun"]
    rank: int
    world_size: int
    local_size: int


def find_launch() -> Launch:
    """As the environment says. ValueError for an `srun` that names no tasks per node."""
    known = os.environ
    if "LOCAL_WORLD_SIZE" in known:  # torchrun, maybe inside SLURM
        return Launch("torchrun", *(int(known[name]) for name in TORCHRUN))
    # of a step, which srun starts: a batch script knows the tasks of its job too, and is alone
    count = int(known.get("SLURM_STEP_NUM_TASKS", "1"))
    if count == 1:
        return Launch("nobody", 0, 1, 1)
    if "SLURM_NTASKS_PER_NODE" not in known:
        raise ValueError(
            "srun: expected --ntasks-per-node, found --ntasks alone; give --ntasks-per-node"
        )
    nodes = int(known["SLURM_STEP_NUM_NODES"])
    if count % nodes:
        raise ValueError(
            f"srun: expected as many tasks on every node, found {count} on {nodes}; give --ntasks "
            "as --nodes times --ntasks-per-node, or leave it out"
        )
    return Launch("srun", int(known["SLURM_PROCID"]), count, count // nodes)
