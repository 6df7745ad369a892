"""Block-regional and dilated attention, and the layouts in which the tokenizer's maps are kept."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semvq.kernels.layout import (
    channels_last_on_cuda,
    doubled_channels_last,
    halved_channels_last,
    memory_format,
)
from semvq.losses.discriminators import PatchGANConfig, StyleGANDiscriminatorConfig
from semvq.tokenizer import conv, regional
from semvq.tokenizer.conv import ConvTokenizerConfig, DecoderLevel, doubled
from semvq.tokenizer.regional import (
    AttentionPair,
    BlockAttention,
    block_size,
    from_blocks,
    to_blocks,
)

LAYOUTS = (torch.contiguous_format, torch.channels_last)


def pair_that_attends(channels: int = 8, heads: int = 2) -> AttentionPair:
    """A pair whose attention, which starts as the identity, has something to say."""
    torch.manual_seed(0)
    pair = AttentionPair(channels, heads)
    for part in (pair.regional, pair.dilated):
        nn.init.normal_(part.proj.weight, 0, 0.3)
        nn.init.normal_(part.norm.weight)
    return pair


def plain_attention(layer: BlockAttention, x: Tensor, together: Tensor) -> Tensor:
    """Attention over the whole map under a mask (HW, HW), in the order of the formula."""
    b, c, h, w = x.shape
    norm = layer.norm
    normal = F.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)
    tokens = normal.flatten(2).transpose(1, 2)
    qkv = layer.qkv(tokens).reshape(b, h * w, 3, layer.heads, c // layer.heads)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    scores = q @ k.mT / math.sqrt(c // layer.heads)
    mixed = scores.masked_fill(~together, -math.inf).softmax(-1) @ v
    out = layer.proj(mixed.transpose(1, 2).reshape(b, h * w, c))
    return x + out.transpose(1, 2).reshape(b, c, h, w)


@pytest.mark.parametrize(
    ("side", "size"), [(1, 1), (2, 1), (4, 2), (8, 4), (16, 4), (24, 8), (32, 8), (64, 8), (256, 8)]
)
def test_block_size(side, size):
    assert block_size(side, side) == size and side % block_size(side, side) == 0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_blocks_are_squares_of_the_map(layout):
    x = torch.arange(2 * 3 * 8 * 12.0).reshape(2, 3, 8, 12).contiguous(memory_format=layout)
    blocks = to_blocks(x, 4)
    assert blocks.shape == (2, 6, 16, 3) and blocks.is_contiguous()
    assert torch.equal(blocks[0, 1, :, 0].reshape(4, 4), x[0, 0, :4, 4:8])
    back = from_blocks(blocks, 4, 8, 12)
    assert torch.equal(back, x) and memory_format(back) == torch.channels_last


@pytest.mark.parametrize("shape", [(2, 8, 8, 8), (1, 8, 12, 8), (1, 8, 24, 16), (2, 8, 1, 1)])
def test_a_pair_is_the_plain_formula_in_either_layout(shape, monkeypatch):
    pair = pair_that_attends()
    height, width = shape[-2:]
    size = block_size(height, width)
    row, column = torch.arange(height)[:, None], torch.arange(width)[None, :]
    block = ((row // size) * width + column // size).flatten()
    place = ((row % size) * size + column % size).flatten()
    weight = torch.randn(shape)
    found = []
    for layout in LAYOUTS:
        x = (torch.linspace(-2, 2, weight.numel()).reshape(shape) + weight).contiguous(
            memory_format=layout
        )
        x.requires_grad_()
        y = pair(x)
        assert y.is_contiguous(memory_format=layout)
        of = (x, *pair.parameters())
        found.append((y, *torch.autograd.grad((y * weight).sum(), of)))
    x = x.detach().requires_grad_()
    y = plain_attention(pair.regional, x, block[:, None] == block)
    y = plain_attention(pair.dilated, y, place[:, None] == place)
    expected = (y, *torch.autograd.grad((y * weight).sum(), (x, *pair.parameters())))
    for result in found:
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)
    monkeypatch.setattr(regional, "_MAX_SEQUENCES", 3)
    torch.testing.assert_close(pair(x), y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["regional", "dilated"])
def test_attention_reaches_its_block_or_its_dilated_set(kind):
    pair = AttentionPair(8, 2)  # the other one stays the identity
    nn.init.normal_(getattr(pair, kind).proj.weight)
    getattr(pair, kind).norm = nn.Identity()  # statistics of a norm would mix all positions
    x = torch.randn(1, 8, 8, 8, requires_grad=True)
    pair(x)[0, :, 5, 2].sum().backward()
    reached = x.grad[0].abs().sum(0) > 0
    expected = torch.zeros(8, 8, dtype=torch.bool)
    across = kind == "dilated"
    expected[(slice(1, 8, 4), slice(2, 8, 4)) if across else (slice(4, 8), slice(0, 4))] = True
    assert torch.equal(reached, expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_attention_starts_as_the_identity(layout):
    x = torch.randn(2, 8, 8, 8).contiguous(memory_format=layout)
    y = AttentionPair(8, 2)(x)
    assert torch.equal(y, x) and y.stride() == x.stride()


def test_names_in_saved_files_are_those_of_the_layers():
    layers = ("norm", "qkv", "proj")
    names = [f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]
    expected = [f"{part}.{name}" for part in ("regional", "dilated") for name in names]
    assert list(AttentionPair(8, 2).state_dict()) == expected


def test_attention_stays_in_the_dtype_of_autocast():
    pair, x = pair_that_attends(), torch.randn(2, 8, 8, 8, requires_grad=True)
    half = x.bfloat16()
    seen: list[Tensor] = []
    handles = [
        part.register_forward_hook(lambda m, a, y: seen.append(y))
        for layer in (pair.regional, pair.dilated)
        for part in (layer.norm, layer.qkv, layer.proj)
    ]
    with torch.autocast("cpu", torch.bfloat16):
        y = pair(half)
    assert {t.dtype for t in (y, *seen)} == {torch.bfloat16}
    assert len(seen) == len(handles)
    exact = pair(x)
    assert (y - exact).abs().max() < 0.05 * exact.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_doubling_is_interpolates(layout, dtype):
    x = torch.randn(2, 5, 3, 4).to(dtype).contiguous(memory_format=layout).requires_grad_()
    reference = F.interpolate(x, scale_factor=2.0, mode="nearest")
    for double in (doubled, doubled_channels_last):
        y = double(x)
        assert y.dtype == dtype and torch.equal(y, reference)
        # Sums of four in another order, of which bfloat16 keeps 8 bits
        grad = torch.randn(y.shape).to(y)
        one, two = (torch.autograd.grad(t, x, grad, retain_graph=True)[0] for t in (y, reference))
        assert one.dtype == dtype
        tolerance = 2.0**-7 if dtype == torch.bfloat16 else 1e-6
        torch.testing.assert_close(one, two, rtol=tolerance, atol=tolerance)


def test_doubling_keeps_channels_last_and_bfloat16_in_both_directions():
    x = torch.randn(2, 5, 3, 4).bfloat16().contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        for double in (doubled, doubled_channels_last):
            y = double(x)
            (grad,) = torch.autograd.grad(y, x, y.detach())
            for t in (y, grad):
                assert t.dtype == torch.bfloat16 and memory_format(t) == torch.channels_last


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_halving_is_average_pooling(layout, dtype):
    x = torch.randn(2, 5, 6, 4).to(dtype).contiguous(memory_format=layout).requires_grad_()
    y, reference = halved_channels_last(x), F.avg_pool2d(x, 2)
    assert torch.equal(y, reference)
    grad = torch.randn(y.shape).to(y)
    one, two = (torch.autograd.grad(t, x, grad)[0] for t in (y, reference))
    assert one.dtype == dtype and torch.equal(one, two)


def test_what_runs_on_cuda_compiles_in_one_graph(monkeypatch):
    """Here that is the way with CUDA's doubling, on maps of two sizes."""
    monkeypatch.setattr(conv, "doubled", doubled_channels_last)
    torch.manual_seed(0)
    level = DecoderLevel(8, 8, 1, 1, 2)
    level.upsample = nn.Conv2d(8, 8, 3, padding=1)
    whole = torch.compile(level, backend="eager", fullgraph=True)
    for height, width in ((8, 8), (24, 16)):
        x = torch.randn(2, 8, height, width).contiguous(memory_format=torch.channels_last)
        assert torch.equal(whole(x), level(x))


def test_memory_formats():
    x = torch.zeros(2, 4, 3, 5)
    assert memory_format(x) == memory_format(x[:, :, ::2]) == torch.contiguous_format
    assert memory_format(x.to(memory_format=torch.channels_last)) == torch.channels_last
    assert memory_format(torch.zeros(2, 4, 1, 1)) == torch.contiguous_format
    assert channels_last_on_cuda(x) is x  # a CPU keeps what it is given


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_maps_are_channels_last_and_weights_are_not():
    torch.manual_seed(0)
    shape = {"resolution": 32, "channels": 16, "multipliers": (1, 2), "blocks_per_level": 1}
    tokenizer = ConvTokenizerConfig(**shape, middle_blocks=1, decoder_attention_pairs=1).build()
    players = PatchGANConfig(8, 2, "none").build(32), StyleGANDiscriminatorConfig(128, 16).build(32)
    models = nn.ModuleList([tokenizer, *players]).cuda()
    turned: list[str] = []

    def look(name: str):
        def hook(module, args, y):
            if memory_format(y) != torch.channels_last and min(y.shape[1:3]) > 1:
                turned.append(name)

        return hook

    for name, module in models.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(look(name))
    images = torch.rand(2, 3, 32, 32, device="cuda") * 2 - 1
    with torch.autocast("cuda", torch.bfloat16):
        reconstruction, quantized = tokenizer(images)
        logits = [player(reconstruction) for player in players]
    losses = tokenizer.quantizer.total(quantized.losses) + reconstruction.square().mean()
    (losses + sum(x.float().mean() for x in logits)).backward()
    assert turned == []
    for parameter in models.parameters():
        assert parameter.is_contiguous()
        assert parameter.grad is None or parameter.grad.is_contiguous()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_a_pair_is_what_it_is_on_a_cpu():
    pair = pair_that_attends(32, 2)
    x = torch.randn(2, 32, 16, 24, requires_grad=True)
    y = pair(x)
    (grad,) = torch.autograd.grad(y, x, y.detach())
    pair.cuda()
    there = x.detach().cuda().contiguous(memory_format=torch.channels_last).requires_grad_()
    z = pair(there)
    (found,) = torch.autograd.grad(z, there, y.detach().cuda())
    assert z.stride() == there.stride() == found.stride()
    torch.testing.assert_close(z.cpu(), y, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(found.cpu(), grad, rtol=2e-2, atol=2e-2)


def test_cudnn_is_not_asked_and_may_be_again_afterwards(monkeypatch):
    attend, asked = F.scaled_dot_product_attention, []

    def looked_at(*parts):
        asked.append(torch.backends.cuda.cudnn_sdp_enabled())
        return attend(*parts)

    before = torch.backends.cuda.cudnn_sdp_enabled()
    monkeypatch.setattr(F, "scaled_dot_product_attention", looked_at)
    pair_that_attends()(torch.randn(1, 8, 8, 8))
    assert asked == [False, False] and torch.backends.cuda.cudnn_sdp_enabled() == before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_gradients_are_finite_where_scores_are_far_below_zero():
    # 64 positions and a log-sum-exp below ln(FLT_MAX), of which cuDNN's backward pass can make NaN
    width = 32
    q, k = (torch.randn(4, 64, 1, width, device="cuda", dtype=torch.bfloat16) * 0.1 for _ in "qk")
    q[..., 0], k[..., 0] = 1.0, -120 * math.sqrt(width)
    v = torch.randn(4, 64, 1, width, device="cuda", dtype=torch.bfloat16)
    parts = [t.requires_grad_() for t in (q, k, v)]
    mixed = regional._attend(*parts)
    found = torch.autograd.grad(mixed, parts, torch.randn_like(mixed))
    assert all(torch.isfinite(grad).all() for grad in found)
