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


@pytest.mark.parametrize("length", [64, 65])
def test_a_compiled_step_has_the_choice_in_its_graph(length):
    graphs: list[str] = []

    def backend(graph, inputs):
        graphs.append(graph.print_readable(print_output=False))
        return graph

    part = Attention(8, 2, 0.0, causal=True)
    torch.compile(part, fullgraph=True, backend=backend)(torch.randn(1, length, 8))
    assert ("sdpa_kernel" in graphs[0]) == (length == 64)
