"""Cases for the kernels of norm_silu, on any device: test_norm_silu.py runs them.

As a script they run on the CPU through Triton's interpreter, which has to be chosen before Triton
is imported: `TRITON_INTERPRET=1 python -m tests.norm_silu_cases` prints what went wrong in each.
"""

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semvq.kernels import fused_norm as module
from semvq.kernels.fused_norm import fused_norm, fused_norm_backward
from semvq.tokenizer.conv import ConvTokenizerConfig
from semvq.tokenizer.norm_silu import EPS, Norm, NormSiLU, norm_groups
from semvq.tokenizer.quantize import VectorQuantizerConfig
from semvq.tokenizer.regional import AttentionPair, BlockAttention
from tests.interpreter import print_outcomes

LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
SHAPES = {  # and what each is for
    "one position": (1, 4, 1, 1),  # tiles of one element, and a single chunk
    "odd": (2, 8, 5, 7),  # several images, groups and programs; positions that end inside a tile
    "three channels a group": (2, 12, 9, 3),  # lanes of a merge without a channel
    "a group of primes": (1, 23, 4, 5),  # one group, and lanes of a tile without a channel
    "two blocks of channels": (1, 140, 3, 6),  # the second not full, and a group in both
    "widest": (1, 512, 4, 4),  # most groups, and blocks of channels that are all full
    "chunks": (1, 8, 130, 131),  # in both layouts, the last one not full
}
FLOAT, HALF = torch.float32, torch.bfloat16
# One rounding is 2**-9 in bfloat16, but the interpreter cuts bits off: 2**-7
TOLERANCE = {FLOAT: 1e-5, torch.float16: 2e-3, HALF: 2.0**-7}
LARGE_MEAN = 1000.0
SMALL = 23, 29  # positions that are several chunks in small tiles


def make(
    shape: tuple[int, ...], layout: str, dtype: torch.dtype, device: str, kind: str = "plain"
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, weight, bias and the gradient of y, each channel of another mean and size."""
    generator = torch.Generator().manual_seed(sum(shape))
    x = torch.randn(shape, generator=generator)
    c = shape[1]
    x = x * (1 + torch.rand(1, c, 1, 1, generator=generator))
    if kind == "faint":  # variance of the size of EPS
        x = x * EPS**0.5
    else:
        x = x + torch.randn(1, c, 1, 1, generator=generator)
    if kind == "large mean":
        x = x + LARGE_MEAN
    weight, bias = torch.randn(2, c, generator=generator)
    grad = torch.randn(shape, generator=generator) + 0.5
    x = x.to(device, dtype).contiguous(memory_format=LAYOUTS[layout])
    grad = grad.to(device).contiguous(memory_format=LAYOUTS[layout])
    return x.requires_grad_(), *(t.to(device).requires_grad_() for t in (weight, bias)), grad


def run(x: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype, silu: bool = True) -> Tensor:
    return fused_norm(x, weight, bias, norm_groups(x.shape[1]), EPS, dtype, silu)[0]


def error(found: Tensor, expected: Tensor) -> float:
    away = (found.detach().double() - expected.detach()).abs().max()
    return float(away / expected.detach().abs().max())


def agrees(
    device: str, *, shape: tuple[int, ...], layout: str, dtype: torch.dtype, out: torch.dtype,
    kind: str = "plain", silu: bool = True,
) -> None:  # fmt: skip
    """Output and gradients against PyTorch in float64."""
    x, weight, bias, grad = make(shape, layout, dtype, device, kind)
    y = run(x, weight, bias, out, silu)
    assert y.dtype == out and y.stride() == x.stride()
    grad = grad.to(out)
    found = torch.autograd.grad(y, (x, weight, bias), grad)
    exact = [t.detach().double().requires_grad_() for t in (x, weight, bias)]
    reference = F.group_norm(exact[0], norm_groups(shape[1]), *exact[1:], EPS)
    reference = F.silu(reference) if silu else reference
    expected = torch.autograd.grad(reference, exact, grad.double())
    assert found[0].dtype == dtype and found[0].stride() == x.stride()
    # A mean in fp32 is known to 2**-24 of itself, whatever is done after: some of those.
    allowed = 1e-5 + 2.0**-22 * LARGE_MEAN if kind == "large mean" else 1e-5
    errors = [error(y, reference), *map(error, found, expected)]
    limits = [max(allowed, TOLERANCE[t.dtype]) for t in (y, *found)]
    assert all(e <= limit for e, limit in zip(errors, limits)), (errors, limits)


def gradients_are_slopes(device: str) -> None:
    x, weight, bias, _ = make((1, 4, 1, 2), "nhwc", FLOAT, device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of inputs in fp32
        torch.autograd.gradcheck(
            lambda *t: run(*t, FLOAT), (x, weight, bias), eps=1e-2, atol=5e-3, rtol=5e-3
        )


def does_not_depend_on_the_batch(device: str, large: tuple[int, int] = (128, 129)) -> None:
    for layout in LAYOUTS:
        x, weight, bias, grad = make((2, 4, *large), layout, HALF, device)
        grad = grad.to(HALF)
        y = run(x, weight, bias, HALF)
        first = torch.autograd.grad(y, (x, weight, bias), grad)
        one = x[1:2].detach().requires_grad_()
        alone = run(one, weight, bias, HALF)
        (dx,) = torch.autograd.grad(alone, one, grad[1:2])
        assert torch.equal(alone[0], y[1]) and torch.equal(dx[0], first[0][1])


def has_the_same_bits_each_time(device: str) -> None:
    for layout in LAYOUTS:
        x, weight, bias, grad = make((2, 8, 16, 17), layout, HALF, device)
        y, again = (run(x, weight, bias, FLOAT) for _ in range(2))
        one, two = (torch.autograd.grad(t, (x, weight, bias), grad) for t in (y, again))
        assert torch.equal(y, again) and all(map(torch.equal, one, two))


def takes_any_strides(device: str) -> None:
    """Slices and broadcasts come out dense, and so do their gradients."""
    base, weight, bias, _ = make((2, 4, 6, 3), "nchw", FLOAT, device)
    for x in (base[:, :, ::2], base.transpose(2, 3), base[:1].expand(3, -1, -1, -1)):
        y, dense = run(x, weight, bias, FLOAT), run(x.contiguous(), weight, bias, FLOAT)
        assert torch.equal(y, dense)
        for grad in (torch.ones((), device=device).expand(y.shape), y.detach().mT.clone().mT):
            one, two = (torch.autograd.grad(t, base, grad, retain_graph=True) for t in (y, dense))
            assert torch.equal(one[0], two[0])


def is_a_proper_operator(device: str) -> None:
    x, weight, bias, grad = make((2, 4, 3, 2), "nhwc", HALF, device)
    for silu in (True, False):
        args = x, weight, bias, 1, EPS, FLOAT, silu
        torch.library.opcheck(fused_norm, args)
        _, mean, rstd = fused_norm(*args)
        plain = (t.detach() for t in (grad, x, weight, bias, mean, rstd))
        torch.library.opcheck(fused_norm_backward, (*plain, silu))


def keeps_little(device: str) -> None:
    """For the backward: x, one mean and one 1 / std per group, and the parameters."""
    x, weight, bias, _ = make((2, 64, 4, 4), "nchw", HALF, device)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        run(x, weight, bias, HALF)
    assert sum(t.numel() for t in kept) == x.numel() + 2 * 64 + 2 * 2 * norm_groups(64)
    assert any(t.data_ptr() == x.data_ptr() and t.dtype == HALF for t in kept)


@contextmanager
def kernels(serve: bool) -> Iterator[None]:
    before = module.serve
    module.serve = lambda x: serve
    try:
        yield
    finally:
        module.serve = before


def a_layer_compiles(device: str, kind: type[Norm]) -> None:
    layer = kind(8).to(device)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    whole = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for layout in LAYOUTS:
        x, _, _, grad = make((2, 8, 5, 6), layout, HALF, device)
        with kernels(True), torch.autocast(device, HALF):
            y, compiled = layer(x), whole(x)
        assert y.dtype == HALF and compiled.stride() == y.stride() and torch.equal(y, compiled)
        of = (x, layer.weight, layer.bias)
        one, two = (torch.autograd.grad(t, of, grad.to(HALF)) for t in (y, compiled))
        assert all(map(torch.equal, one, two))


def attention_compiles(device: str) -> None:
    """In one graph, on maps of two sizes, in autocast's dtype and the map's memory format."""
    torch.manual_seed(0)
    pair = AttentionPair(8, 2).to(device)
    show_attention(pair)
    whole = torch.compile(pair, backend="aot_eager", fullgraph=True)
    for shape in ((2, 8, 8, 12), (2, 8, 24, 24)):
        x, _, _, grad = make(shape, "nhwc", HALF, device)
        with kernels(True), torch.autocast(device, HALF):
            y, compiled = pair(x), whole(x)
        assert y.dtype == HALF and compiled.stride() == y.stride() == x.stride()
        assert error(compiled, y) <= 2 * TOLERANCE[HALF]
        one, two = (torch.autograd.grad(t, x, grad.to(HALF))[0] for t in (y, compiled))
        assert one.dtype == HALF and one.stride() == two.stride() == x.stride()
        assert error(two, one) <= 4 * TOLERANCE[HALF]


def show_attention(module: nn.Module) -> None:
    """Give attention, which starts as the identity, something to say."""
    for part in module.modules():
        if isinstance(part, BlockAttention):
            nn.init.normal_(part.proj.weight)


def a_tokenizer_is_the_same_with_them(device: str) -> None:
    """Latents and gradients of a whole tokenizer with the kernels against those without."""
    torch.manual_seed(0)
    quantizer = VectorQuantizerConfig(num_codes=16, code_dim=8)
    shape = {"resolution": 8, "channels": 8, "multipliers": (1, 3), "blocks_per_level": 1}
    shape |= {"decoder_attention_pairs": 1, "attention_heads": 2}
    config = ConvTokenizerConfig(**shape, middle_blocks=1, quantizer=quantizer)
    tokenizer = config.build().to(device, memory_format=torch.channels_last)
    show_attention(tokenizer)
    images = torch.rand(1, 3, 8, 8, device=device) * 2 - 1
    parameters = [*tokenizer.encoder.parameters(), *tokenizer.decoder.parameters()]
    found = []
    for serve in (True, False):
        exact = torch.backends.cudnn.flags(deterministic=True, allow_tf32=False)
        with kernels(serve), exact:
            decoded = tokenizer.decoder(tokenizer.latents(images))
            found.append([decoded, *torch.autograd.grad(decoded.square().sum(), parameters)])
    for one, two in zip(*found):
        assert torch.allclose(one, two, rtol=1e-4, atol=1e-5 * float(two.abs().max()))


def cases() -> dict[str, Callable[[str], None]]:
    found: dict[str, Callable[[str], None]] = {}
    for layout in LAYOUTS:
        for name, shape in SHAPES.items():
            for dtype in (FLOAT,) if name == "chunks" else (FLOAT, HALF):  # it is slow
                key = f"{name}, {layout}, {dtype}"
                found[key] = partial(agrees, shape=shape, layout=layout, dtype=dtype, out=dtype)
        for kind, name in (("faint", "odd"), ("large mean", "odd"), ("large mean", "chunks")):
            shape = SHAPES[name]
            found[f"{kind}, {name}, {layout}"] = partial(
                agrees, shape=shape, layout=layout, dtype=FLOAT, out=FLOAT, kind=kind
            )
        for dtype, out in ((FLOAT, HALF), (HALF, FLOAT), (torch.float16, torch.float16)):
            found[f"{dtype} to {out}, {layout}"] = partial(
                agrees, shape=(2, 16, 6, 5), layout=layout, dtype=dtype, out=out
            )
        for name in ("one position", "three channels a group", "two blocks of channels"):
            for dtype, out in ((FLOAT, FLOAT), (HALF, HALF), (FLOAT, HALF)):
                found[f"no SiLU, {name}, {dtype} to {out}, {layout}"] = partial(
                    agrees, shape=SHAPES[name], layout=layout, dtype=dtype, out=out, silu=False
                )
    for kind in (Norm, NormSiLU):
        found[f"a {kind.__name__} compiles"] = partial(a_layer_compiles, kind=kind)
    others = (
        gradients_are_slopes,
        does_not_depend_on_the_batch,
        has_the_same_bits_each_time,
        takes_any_strides,
        is_a_proper_operator,
        keeps_little,
        attention_compiles,
        a_tokenizer_is_the_same_with_them,
    )
    return {**found, **{case.__name__: case for case in others}}


def in_small_tiles(device: str, case: Callable[[str], None]) -> None:
    """With tiles of 256 elements for 2048, 2 a chunk for 8, and 8 partial sums merged at once.

    Then a small map has what takes a large one: several chunks of several tiles, of which the last
    is not full, and merges in several rounds.
    """
    from semvq.kernels import norm_silu as kernels

    layout = kernels._layout.__wrapped__  # without its cache
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"_TILE": 256, "_TILES": 2, "_MERGE": 8, "_layout": layout}.items():
            patch.setattr(kernels, name, value)
        (nchw, _, _), (nhwc, merge, _) = (layout(8, math.prod(SMALL), 2, x) for x in (True, False))
        assert min(nchw["chunks"], nchw["TILES"], nhwc["chunks"], nhwc["TILES"]) > 1
        assert nhwc["chunks"] > merge["BLOCK_R"], "rounds of the merge"
        case(device)


def interpreted_cases() -> dict[str, Callable[[str], None]]:
    """Every kind of case, fewer of the slow ones, and most large maps as small ones.

    Both of the widest's dtypes, in a layout each: the other shapes have all four.
    """
    left = {f"widest, nchw, {HALF}", f"widest, nhwc, {FLOAT}"}
    left |= {name for name in CASES if "chunks, " in name} - {f"chunks, nhwc, {FLOAT}"}
    # test_regional.py compiles attention in less time
    left |= {"does_not_depend_on_the_batch", "attention_compiles"}
    small = {n: partial(c, shape=(1, 8, *SMALL)) for n, c in CASES.items() if "chunks, " in n}
    small["the batch"] = partial(does_not_depend_on_the_batch, large=SMALL)
    found = {name: case for name, case in CASES.items() if name not in left}
    return found | {f"{n}, small tiles": partial(in_small_tiles, case=c) for n, c in small.items()}


CASES = cases()
INTERPRETED = interpreted_cases()


if __name__ == "__main__":
    print_outcomes(INTERPRETED)
