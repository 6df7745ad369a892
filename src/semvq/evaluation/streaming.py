"""One pass over a source by many processes, whose results arrive in the order of the images.

Sums in another order differ in their last bits, and printed digits with them. So units are dealt
out to the processes, and their results meet again, in order, at the one that adds them up.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from semvq.data.images import pieces
from semvq.data.order import MAX_BAD_SHARE
from semvq.downloads import Progress
from semvq.evaluation.features import FeatureNet
from semvq.evaluation.sources import UNIT, Images, Source
from semvq.training.distributed import World

Results = dict[str, Tensor]
CHUNK = 16  # images that a tokenizer and the distances of pixels see at a time
PIXEL_PATH = "[-1, 1] rounded to uint8"


@dataclass(frozen=True)
class Setting:
    """How a protocol looks at images and goes over them; without `net` no features are taken.

    `batch_size`, in whole units of `UNIT`, is how many images a process takes between two meetings
    of all: a lone process has none, and every pass has a unit or less, whatever it is. It never
    decides a result. `fast` takes features in bfloat16, and `differences` says
    how far off they are. `bad` collects, at the writer, the files that could not be read, each once
    however often a protocol goes over them.
    """

    net: FeatureNet | None = None
    world: World = field(default_factory=World)
    batch_size: int = UNIT
    fast: bool = False
    progress: Progress | None = None
    bad: list[str] = field(default_factory=list)
    differences: list[float] = field(default_factory=list)

    def features(self, pixels: Tensor) -> Tensor:
        """Features (n, D) of uint8 images; only with a network.

        Fast ones are compared with exact ones at the first unit: |difference| / |exact|.
        """
        assert self.net is not None, "there is no network to take features with"
        if not self.fast:
            return self.net(pixels)
        found = self.net.fast(pixels)
        if not self.differences:
            exact = self.net(pixels)
            self.differences.append(float((found - exact).norm() / exact.norm()))
        return found

    def feature_facts(self, side: int, source: dict[str, Any]) -> dict[str, Any]:
        """What features depend on: network, precision, pixel path, size and the images."""
        precision = "bfloat16" if self.fast else "float32"
        paths = {"precision": precision, "pixels": PIXEL_PATH, "side": side, "source": source}
        return (self.net.facts() if self.net else {}) | paths


def in_chunks(compute: Callable[..., Results], *tensors: Tensor) -> Results:
    """`compute` of `CHUNK` rows of the tensors at a time, its results (n, …) one after the other.

    Activations of a whole unit of large images would fill a GPU's memory.
    """
    parts = [compute(*rows) for rows in zip(*(tensor.split(CHUNK) for tensor in tensors))]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside, sums and decompositions on the CPU run in one thread.

    More threads add in another order, and torchrun gives each process one, a lone process all.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def in_order(
    source: Source,
    compute: Callable[[Images], Results],
    consume: Callable[[Results], Any],
    setting: Setting,
    title: str,
) -> None:
    """`compute` every unit somewhere and `consume` all results at the writer, in order.

    ValueError where all units came out empty, or where more than 1 % of the files (and more than
    one) cannot be read, whichever process met them.
    """
    world = setting.world
    numbers = list(pieces(range(source.num), UNIT))
    per_round = max(1, setting.batch_size // UNIT)
    mine = (n for i, n in enumerate(numbers) if i // per_round % world.count == world.rank)
    found = ((compute(unit) if len(unit.pixels) else {}, unit.bad) for unit in source.units(mine))
    num_used, done = 0, 0
    bad: list[str] = []
    for _ in range(0, len(numbers), per_round * world.count):
        for results, unit_bad in world.to_writer(list(islice(found, per_round))):
            bad.extend(unit_bad)
            if results:
                consume(results)
                num_used += 1
        if len(bad) > max(1, int(MAX_BAD_SHARE * source.num)):
            raise ValueError(
                f"{len(bad)} of {source.num} images cannot be read, more than {MAX_BAD_SHARE:.0%}: "
                f"{'; '.join(bad[:3])}; repair or remove them"
            )
        done += per_round * world.count * UNIT
        if world.is_writer and setting.progress:
            setting.progress(title, min(done, source.num), source.num)
    if world.is_writer and not num_used:
        raise ValueError(f"no image could be read; the first: {bad[0]}")
    setting.bad.extend(line for line in bad if line not in setting.bad)
