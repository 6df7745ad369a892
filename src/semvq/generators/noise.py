"""Counter-based noise: a pure function of (seed, sample index, step or position, code).

A sample's noise does not depend on the batch it is drawn in, on the device or on what was drawn
before (D11: one seed per sample index). Plain int64 tensor arithmetic on 32-bit words, so it runs
inside a captured graph and needs no generator object.
"""

from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from semvq.kernels.trial import runs_on

Word = TypeVar("Word", int, Tensor)

# Streams keep draws made for different purposes apart.
AR_CODES, NAR_CODES, NAR_CHOICES, EVALUATION_MASKS, UNIGRAM_CODES, PROBE_MASKS, SUBSETS = range(7)

_LOW = 0xFFFFFFFF
_STEP = 0x9E3779B9  # 2**32 over the golden ratio: no state of all zeros is a fixed point


class Noise:
    """Noise for the samples whose numbers are `indices` (B,) int64, each in [0, 2**32).

    `seed` is any Python int; its lowest 64 bits count. Methods take a stream and the counters
    `where` (see `Stream`), and return (B, *S).
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

    def stream(self, number: int) -> "Stream":
        """The noise of one purpose, (B,): all that depends on the seed is in its two tensors."""
        first, second = _absorb(_STEP, ~_STEP & _LOW, self.seed & _LOW)
        first, second = _absorb(first, second, (self.seed >> 32) & _LOW)
        first, second = _absorb(first, second, number)
        like = torch.full_like
        a, b = _absorb(like(self.indices, first), like(self.indices, second), self.indices)
        return Stream(a, b)

    def bits(self, stream: int, *where: int | Tensor) -> Tensor:
        """int64 (B, *S), uniform on [0, 2**32)."""
        return self.stream(stream).at(*where).second

    def uniform(self, stream: int, *where: int | Tensor) -> Tensor:
        """float64 (B, *S) in the open interval (0, 1); see `Stream.uniform`."""
        return self.stream(stream).at(*where).uniform()

    def gumbel(self, stream: int, *where: int | Tensor) -> Tensor:
        """float32 (B, *S), standard Gumbel; see `Stream.gumbel`."""
        return self.stream(stream).at(*where).gumbel()


class Stream(NamedTuple):
    """A state of 64 bits for every place reached so far: int64 words `first` and `second` (*S).

    Nothing else decides the noise, so a captured step that reads the two tensors serves any seed.
    """

    first: Tensor
    second: Tensor

    def at(self, *where: int | Tensor) -> "Stream":
        """One counter further for each of `where` (ints, or int64 tensors).

        Tensors are laid out behind the places of now: they broadcast together to T, and (*S)
        becomes (*S, *T).
        """
        num_dims = max((w.ndim for w in where if isinstance(w, Tensor)), default=0)
        a, b = (word.view(*word.shape, *([1] * num_dims)) for word in self)
        for word in where:
            a, b = _absorb(a, b, word if isinstance(word, Tensor) else torch.full_like(a, word))
        return Stream(a, b)

    def uniform(self) -> Tensor:
        """float64 (*S) in the open interval (0, 1): middles of 2**32 equal cells."""
        return (self.second.double() + 0.5) * 2.0**-32

    def gumbel(self) -> Tensor:
        """float32 (*S), standard Gumbel; the logs are float64, so that devices agree."""
        return self.uniform().log_().neg_().log_().neg_().float()

    def gumbel_of(self, num: int) -> Tensor:
        """float32 (*S, num): the Gumbel noise one counter further, for each of 0 … num - 1."""
        if self.first.is_cuda and runs_on(self.first.device, "noise", _try):
            from semvq.kernels import noise as kernels

            return kernels.gumbel(self.first, self.second, num)
        return self.at(torch.arange(num, device=self.first.device)).gumbel()


def _try(device: torch.device) -> None:
    from semvq.kernels import noise as kernels

    kernels.check(Noise.consecutive(-3, 0, 5, device).stream(AR_CODES))


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
