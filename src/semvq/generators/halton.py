"""Halton order of a grid's positions: each next one far from those before.

Besnier et al., "Halton Scheduler for Masked Generative Image Transformer", ICLR 2025: codes that
are fixed in the same step should know little of each other, so they are spread over the image.
"""

from functools import lru_cache
from itertools import count


def radical_inverse(index: int, base: int) -> tuple[int, int]:
    """(n, d): the digits of `index` mirrored at the point are the fraction n / d, in [0, 1)."""
    numerator, denominator = 0, 1
    while index:
        index, digit = divmod(index, base)
        numerator, denominator = numerator * base + digit, denominator * base
    return numerator, denominator


@lru_cache
def halton_order(height: int, width: int) -> tuple[int, ...]:
    """All raster positions of a height x width grid, in the order the sequence first meets them.

    Point i = 1, 2, ... has its row from base 2 and its column from base 3. Any 2^a * 3^b points in
    a row lie one in each cell of a 2^a x 3^b partition, so every position is met in the end.
    Whole numbers throughout: the same order on every machine.
    """
    met: dict[int, None] = {}  # a set that keeps its order
    for index in count(1):
        row_n, row_d = radical_inverse(index, 2)
        column_n, column_d = radical_inverse(index, 3)
        met[row_n * height // row_d * width + column_n * width // column_d] = None
        if len(met) == height * width:
            break
    return tuple(met)
