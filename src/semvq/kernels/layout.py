"""Memory formats of maps (B, C, H, W): which one a map has, and which one a device wants."""

import torch
from torch import Tensor


def memory_format(x: Tensor) -> torch.memory_format:
    """channels_last where `x` (B, C, H, W) is that and nothing else, contiguous_format otherwise.

    So a map that is dense in neither way counts as contiguous, and one that is in both ways too.
    """
    last = torch.channels_last
    plain = x.is_contiguous() or not x.is_contiguous(memory_format=last)
    return torch.contiguous_format if plain else last


def channels_last_on_cuda(x: Tensor) -> Tensor:
    """`x` (B, C, H, W), on CUDA in the layout that convolutions of tensor cores read.

    What follows keeps the layout, so that nothing is turned between two layers. The weights stay
    contiguous: cuDNN goes by the activations, and the states of optimisers keep their layout.
    Elsewhere a map is left as it comes.
    """
    return x.contiguous(memory_format=torch.channels_last) if x.is_cuda else x
