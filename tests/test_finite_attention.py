"""Attention leaves cuDNN's kernels out at the lengths where their gradients can be NaN."""

import pytest
import torch
import torch.nn.functional as F

from semvq.generators.blocks import Attention
from semvq.rivals import vqgan_layers


@pytest.fixture
def asked(monkeypatch) -> list[bool]:
    """Whether cuDNN was allowed, at every call."""
    attend, found = F.scaled_dot_product_attention, []

    def looked_at(*parts, **options):
        found.append(torch.backends.cuda.cudnn_sdp_enabled())
        return attend(*parts, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", looked_at)
    return found


@pytest.mark.parametrize("length", [16, 64, 65, 128, 192, 256, 257])
def test_a_transformer_at_64_and_192_positions_does_without_cudnn(asked, length):
    before = torch.backends.cuda.cudnn_sdp_enabled()
    Attention(8, 2, 0.0, causal=True)(torch.randn(1, length, 8))
    assert asked == [before and length not in (64, 192)]
    assert torch.backends.cuda.cudnn_sdp_enabled() == before


def test_so_does_a_map_of_64_places(asked):
    for side in (8, 16):
        vqgan_layers.Attention(32, vqgan_layers.PLAIN)(torch.randn(1, 32, side, side))
    assert asked == [False, torch.backends.cuda.cudnn_sdp_enabled()]


def test_a_compiled_step_takes_the_kernels_too():
    torch.manual_seed(0)
    part = Attention(8, 2, 0.0, causal=True)
    x = torch.randn(1, 64, 8)
    compiled = torch.compile(part, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), part(x))
