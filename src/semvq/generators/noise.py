"""Counter-based noise: a pure function of (seed, sample index, step or position, code).

A sample's noise does not depend on the batch it is drawn in, on the device or on what was drawn
before (D11: one seed per sample index). Plain int64 tensor arithmetic on 32-bit words, so it runs
inside a captured graph and needs no generator object.
"""

from typing import TypeVar

import torch
from torch import Tensor

Word = TypeVar("Word", int, Tensor)

# Streams keep draws made for different purposes apart.
AR_CODES, NAR_CODES, NAR_CHOICES, EVALUATION_MASKS, UNIGRAM_CODES, PROBE_MASKS, SUBSETS = range(7)

_LOW = 0xFFFFFFFF
_STEP = 0x9E3779B9  # 2**32 over the golden ratio: no state of all zeros is a fixed point


class Noise:
    """Noise for the samples whose numbers are `indices` (B,) int64, each in [0, 2**32).

    `seed` is any Python int; its lowest 64 bits count. Methods take a stream and the counters
    `where` (ints, or int64 tensors that broadcast together to a shape S), and return (B, *S).
    """

    def __init__(self, seed: int, indices: Tensor) -> None:
        assert indices.ndim == 1 and indices.dtype == torch.int64, (indices.shape, indices.dtype)
        self.seed, self.indices = seed, indices

    @classmethod
    def consecutive(
        cls, seed: int, first_index: int, num: int, device: torch.device | str = "cpu"
    ) -> "Noise":
        """Noise of samples first_index, first_index + 1, ...; ValueError out of [0, 2**32)."""
        if first_index < 0 or first_index + num > 2**32:
            raise ValueError(
                f"expected sample indices in [0, 2**32), found {first_index} to {first_index + num}"
            )
        return cls(seed, torch.arange(first_index, first_index + num, device=device))

    def bits(self, stream: int, *where: int | Tensor) -> Tensor:
        """int64 (B, *S), uniform on [0, 2**32)."""
        num_dims = max((w.ndim for w in where if isinstance(w, Tensor)), default=0)
        first, second = _absorb(_STEP, ~_STEP & _LOW, self.seed & _LOW)
        first, second = _absorb(first, second, (self.seed >> 32) & _LOW)
        first, second = _absorb(first, second, stream)
        index = self.indices.view(-1, *([1] * num_dims))
        a, b = _absorb(torch.full_like(index, first), torch.full_like(index, second), index)
        for word in where:
            a, b = _absorb(a, b, word if isinstance(word, Tensor) else torch.full_like(a, word))
        return b

    def uniform(self, stream: int, *where: int | Tensor) -> Tensor:
        """float64 (B, *S) in the open interval (0, 1): middles of 2**32 equal cells."""
        return (self.bits(stream, *where).double() + 0.5) * 2.0**-32

    def gumbel(self, stream: int, *where: int | Tensor) -> Tensor:
        """float32 (B, *S), standard Gumbel; the logs are float64, so that devices agree."""
        return self.uniform(stream, *where).log_().neg_().log_().neg_().float()


def _absorb(a: Word, b: Word, word: Word) -> tuple[Word, Word]:
    """Next 64-bit state (a, b) after one 32-bit word; different words give different states.

    Bijective in the state for every word, so two samples never fall into the same stream.
    """
    mixed = _mix(a ^ word)
    b = _mix((b + mixed + _STEP) & _LOW)
    return (mixed + b) & _LOW, b


def _mix(x: Word) -> Word:
    """Bijection of 32-bit words: xor-shift-multiply with well-tested constants.

    Multipliers (C. Wellons, hash-prospector, public domain) lie below 2**31: a product of one with
    a 32-bit word stays within int64, so there is no overflow to define.
    """
    x = x ^ (x >> 16)  # a new tensor, which the lines below may change in place
    x *= 0x21F0AAAD
    x &= _LOW
    x ^= x >> 15
    x *= 0x735A2D97
    x &= _LOW
    x ^= x >> 15
    return x
