"""Cases for the kernels of sampling, on any device: test_decoding.py runs them.

As a script they run on the CPU through Triton's interpreter, which has to be chosen before Triton
is imported: `TRITON_INTERPRET=1 python -m tests.decoding_cases` prints what went wrong in each.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F

from semvq.generators.ar import ARConfig
from semvq.generators.noise import Noise
from semvq.kernels import attending, decoding, noise, sampling
from tests.interpreter import print_outcomes

FLOAT, HALF = torch.float32, torch.float16  # the interpreter multiplies no matrices of bfloat16
TOLERANCE = {FLOAT: 2e-5, HALF: 2e-3, torch.bfloat16: 2e-2}


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    error = (found.double() - expected.double()).abs().max()
    limit = TOLERANCE[found.dtype] * expected.abs().max()
    assert found.isfinite().all() and error <= limit, f"off by {error}, allowed {limit}"


def noise_is_the_plain_one(device: str) -> None:
    for shape, num_codes in (((3,), 5), ((2, 7), 1500), ((0,), 4), ((1, 1), 1024)):
        stream = Noise.consecutive(-5, 2**32 - 20, 20, device).stream(3)
        words = [w[: torch.Size(shape).numel()].reshape(shape) for w in stream]
        plain = type(stream)(*words).at(torch.arange(num_codes, device=device)).gumbel()
        found = noise.gumbel(*words, num_codes)
        assert found.shape == plain.shape and found.dtype == plain.dtype
        # the logarithms of two libraries may round apart
        assert torch.allclose(found, plain, rtol=3e-7, atol=1e-7)


def dense(device: str, dtype: torch.dtype, num: int, width: int, wide: int, parts: str) -> None:
    """`few_rows` and `linear` against PyTorch in float64, with the parts that are named."""
    torch.manual_seed(num + width)
    x, residual = torch.randn(num, width) + 1, torch.randn(num, wide)
    weight, bias = torch.randn(wide, width) / width**0.5, torch.randn(wide)
    gain, shift = 1 + torch.randn(2, width) / 4
    x, residual, weight, bias, gain, shift = (
        t.to(device, dtype) for t in (x, residual, weight, bias, gain, shift)
    )
    norm = (gain, shift, 1e-5) if "norm" in parts else None
    y = x.double()
    if norm:
        y = F.layer_norm(y, (width,), gain.double(), shift.double(), 1e-5)
    y = F.linear(y, weight.double(), bias.double())
    y = F.gelu(y) if "gelu" in parts else y
    if "split" in parts:
        close(decoding.linear(x, weight, bias, splits=3).sum(0), y)
    elif not norm:
        close(decoding.linear(x, weight, bias, gelu="gelu" in parts)[0], y)
    y = y + residual.double() if "residual" in parts else y
    found = decoding.few_rows(
        x, weight, bias, norm=norm, gelu="gelu" in parts,
        residual=residual if "residual" in parts else None,
    )  # fmt: skip
    close(found, y)


def sum_and_norm(device: str, dtype: torch.dtype, splits: int) -> None:
    torch.manual_seed(splits)
    x, (gain, shift) = torch.randn(5, 300) + 3, torch.randn(2, 300)
    parts = torch.randn(splits, 5, 300)
    x, parts, gain, shift = (t.to(device, dtype) for t in (x, parts, gain, shift))
    added, normed = decoding.add_norm(x, parts, (gain, shift, 1e-5))
    close(added, x.double() + parts.double().sum(0))
    expected = F.layer_norm(added.double(), (300,), gain.double(), shift.double(), 1e-5)
    close(normed, expected)
    if splits == 1:
        assert torch.equal(decoding.norm_of_sum(x, parts[0], (gain, shift, 1e-5)), normed)


def attention(device: str, dtype: torch.dtype, position: int, width: int) -> None:
    torch.manual_seed(position)
    num, heads, length = 3, 2, 70
    memory = torch.randn(2, num, heads, length, width).to(device, dtype)
    memory[..., position:, :] = torch.nan  # what was not written yet must not be read
    qkv = torch.randn(num, 3 * heads * width).to(device, dtype)
    at = torch.tensor([position], device=device)
    found = attending.attend(qkv, memory, at)
    q, k, v = qkv.view(num, 3, heads, width).unbind(1)
    assert torch.equal(memory[0, :, :, position], k) and torch.equal(memory[1, :, :, position], v)
    keys, values = memory[..., : position + 1, :].double()
    plain = F.scaled_dot_product_attention(q[:, :, None].double(), keys, values)
    close(found, plain.flatten(1))


@contextmanager
def kernels() -> Iterator[None]:
    """The kernels serve, whatever the device."""
    before = sampling.serve
    sampling.serve = lambda x: True
    try:
        yield
    finally:
        sampling.serve = before


@torch.no_grad()
def steps_of_a_model(device: str, dtype: torch.dtype, num: int) -> None:
    """All blocks and the head, one position after the other, against one pass in float64."""
    torch.manual_seed(num)
    shape = {"grid_height": 1, "grid_width": 4, "num_codes": 11}
    model = ARConfig(num_layers=2, width=32, num_heads=2, **shape).build().eval()
    for parameter in model.parameters():
        # far from uniform logits, and no bias or shift of zero
        parameter.mul_(5).add_(torch.randn_like(parameter), alpha=0.1)
    model.to(device, dtype)
    codes = torch.randint(11, (num, 4), device=device)
    expected = copy.deepcopy(model).double()(codes)
    cache = model.new_cache(num)
    with kernels():
        for i in range(4):
            logits = model.step(codes[:, i - 1] if i else None, cache)
            error = (logits.double() - expected[:, i]).abs().max()
            assert error <= 4 * TOLERANCE[dtype] * expected.abs().max(), (i, error)


def rows_with_gaps_are_normed(device: str) -> None:
    norm = torch.nn.LayerNorm(16).to(device)
    x = torch.randn(1, 3, 20, device=device)[..., :16]
    y = torch.randn(1, 3, 16, device=device)
    with kernels(), torch.no_grad():
        close(sampling.add_norm(x, y, norm), norm(x + y))


CASES: dict[str, Callable[[str], None]] = {
    "noise_is_the_plain_one": noise_is_the_plain_one,
    "rows_with_gaps_are_normed": rows_with_gaps_are_normed,
}
for dtype in (FLOAT, HALF, *([torch.bfloat16] if torch.cuda.is_available() else [])):
    name = str(dtype).removeprefix("torch.")
    for sizes, parts in (  # in the library dense layers of fp32 are cuBLAS's
        ((1, 48, 40), "norm"),
        ((5, 300, 33), "norm gelu"),
        ((70, 96, 48), "alone"),
        ((130, 64, 80), "gelu"),
        ((66, 300, 80), "split"),
        ((2, 384, 40), "split"),
        ((3, 70, 80), "gelu residual"),
    ) * (dtype != FLOAT):
        key = f"dense_{parts.replace(' ', '_')}_{'x'.join(map(str, sizes))}_{name}"
        num, width, wide = sizes
        CASES[key] = partial(dense, dtype=dtype, num=num, width=width, wide=wide, parts=parts)
    for splits in (1, 4):
        CASES[f"sum_of_{splits}_and_norm_{name}"] = partial(
            sum_and_norm, dtype=dtype, splits=splits
        )
    for num in (2, 3):  # `sampling.FEW_ROWS`, and more; over `SOME_ROWS` it is as in float32
        CASES[f"steps_of_{num}_samples_{name}"] = partial(steps_of_a_model, dtype=dtype, num=num)
    for position, width in ((0, 16), (1, 24), (64, 16), (69, 64)):
        key = f"attention_at_{position}_of_width_{width}_{name}"
        CASES[key] = partial(attention, dtype=dtype, position=position, width=width)


if __name__ == "__main__":
    print_outcomes(CASES)
