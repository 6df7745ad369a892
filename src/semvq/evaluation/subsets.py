"""Which images take part where not all of them can: at random, and fixed once and for all.

Files stand in the order of their classes, so the first ones are no sample of the rest. Whether an
image takes part is a function of its number and of the numbers there are: of no batch, process or
machine.
"""

from collections.abc import Iterable, Iterator
from itertools import islice, tee

import torch
from torch import Tensor

from semvq.evaluation.sources import Images, Source
from semvq.generators import sampling
from semvq.generators.noise import SUBSETS, Noise

# what a subset is for; two purposes share nothing
KEPT_ROWS, SCORE_SPLITS, CODED_IMAGES = range(3)


def places(numbers: Tensor, purpose: int) -> Tensor:
    """Where images of those numbers (n,) stand in a fixed shuffled order of all: int64 to sort by.

    No two are equal: where the random part is, the number decides.
    """
    return (Noise(0, numbers).bits(SUBSETS, purpose) << 31) | numbers


def ranks(num: int, purpose: int) -> Tensor:
    """A fixed permutation int64 (num,): how many of `num` images come before each."""
    return sampling.ranks(places(torch.arange(num), purpose))


class SomeImages:
    """At most `most` images of another source: all in order, or a fixed random part in order."""

    def __init__(self, source: Source, most: int, purpose: int) -> None:
        self.source, self.side = source, source.side
        self.chosen = (ranks(source.num, purpose) < most).nonzero().flatten()
        self.num = len(self.chosen)

    def units(self, numbers: Iterable[range]) -> Iterator[Images]:
        """See `Source`; numbers count the chosen images."""
        numbers, parts = tee(numbers)
        places = (n for part in numbers for n in self.chosen[part.start : part.stop].tolist())
        found = self.source.units(range(n, n + 1) for n in places)
        for part in parts:
            units = list(islice(found, len(part)))
            read = [i for i, unit in zip(part, units) if len(unit.pixels)]
            yield Images(
                part.start,
                torch.cat([unit.pixels for unit in units]),
                torch.cat([unit.labels for unit in units]),
                tuple(line for unit in units for line in unit.bad),
                torch.tensor(read, dtype=torch.int64),
            )

    def facts(self) -> dict[str, object]:
        """Those of the whole, and how many take part."""
        words = "all" if self.num == self.source.num else f"random {self.num}"
        return self.source.facts() | {"taken": f"{words} of {self.source.num}"}
