"""Fused GroupNorm and SiLU: kernels against PyTorch, and the layers where there are none."""

import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from semvq.kernels import fused_norm as module
from semvq.tokenizer.conv import ResidualBlock
from semvq.tokenizer.norm_silu import EPS, Norm, NormSiLU, norm_groups
from tests.interpreter import interpreted, python
from tests.norm_silu_cases import CASES, INTERPRETED, run


@pytest.fixture(scope="module")
def outcomes() -> dict[str, str]:
    return interpreted("tests.norm_silu_cases")


@pytest.mark.parametrize("case", INTERPRETED)
def test_kernels_in_the_interpreter(case, outcomes):
    assert outcomes[case] == ""


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("case", CASES)
def test_kernels_on_a_gpu(case):
    CASES[case]("cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_batch_of_more_than_two_to_the_31_elements(layout):
    if torch.cuda.mem_get_info()[0] < 24 * 2**30:
        pytest.skip("needs 24 GiB of GPU memory")
    shape = 257, 128, 256, 256
    x = torch.randn(shape, device="cuda", dtype=torch.bfloat16).to(memory_format=layout)
    x.requires_grad_()
    weight, bias = torch.rand(2, 128, device="cuda")
    y = run(x, weight, bias, torch.bfloat16)
    last = x[-1:].detach().requires_grad_()
    alone = run(last, weight, bias, torch.bfloat16)
    assert torch.equal(y[-1:], alone)
    (dx,) = torch.autograd.grad(y, x, y.detach())
    assert torch.equal(dx[-1:], torch.autograd.grad(alone, last, alone.detach())[0])


COMPILE = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from semvq.kernels import norm_silu as kernels

HALVES = ("x", "y", "grad", "dx")
NAMES = ("_partial_moments", "_merge_moments", "_apply")
NAMES += ("_partial_sums", "_merge_sums", "_apply_backward")
for positions, contiguous in ((256, False), (1, True)):
    shape, merge, _ = kernels._layout(128, positions, 32, contiguous)
    given = {**shape, **merge, "eps": 1e-6, "SILU": contiguous}
    for name in NAMES:
        kernel, signature, constants = getattr(kernels, name), {}, {}
        for i, argument in enumerate(kernel.arg_names):
            value = given.get(argument)
            if value is None:
                signature[argument] = "*bf16" if argument in HALVES else "*fp32"
            elif value == 1 or kernel.params[i].is_constexpr:
                signature[argument], constants[(i,)] = "constexpr", value
            else:
                signature[argument] = "fp32" if argument == "eps" else "i32"
        for capability in (80, 90):
            source = ASTSource(kernel, signature, constants)
            built = compile(source, target=GPUTarget("cuda", capability, 32))
            assert built.asm["cubin"]
            print(name)
"""


def test_kernels_compile_for_gpus_that_are_not_here(tmp_path):
    """The interpreter takes more than the compiler does, such as numbers of the wrong kind."""
    triton = pytest.importorskip("triton", minversion="3.3")  # earlier signatures are others
    if not (Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas").exists():
        pytest.skip("this Triton has no compiler for NVIDIA's GPUs")
    output = python("-c", COMPILE, TRITON_CACHE_DIR=str(tmp_path), TRITON_INTERPRET="0")
    assert len(output.split()) == 2 * 6 * 2


def test_groups_have_at_least_four_channels_and_divide_the_width():
    assert [norm_groups(c) for c in (1, 3, 4, 8, 12, 24, 128, 192, 512)] == [
        1, 1, 1, 2, 3, 6, 32, 32, 32,
    ]  # fmt: skip


def test_the_layer_is_the_group_norm_that_it_was():
    """Names and shapes of saved files, and without kernels each bit."""
    plain, layer = nn.GroupNorm(norm_groups(24), 24, eps=EPS), NormSiLU(24)
    nn.init.normal_(plain.weight)
    layer.load_state_dict(plain.state_dict())
    x = torch.randn(2, 24, 5, 3)
    for given in (x, x.to(memory_format=torch.channels_last), x.double()):
        plain, layer = plain.to(given.dtype), layer.to(given.dtype)
        assert torch.equal(layer(given), F.silu(plain(given)))
        bare = Norm(24).to(given.dtype)
        bare.load_state_dict(plain.state_dict())
        assert torch.equal(bare(given), plain(given))
    assert list(ResidualBlock(8, 16).state_dict()) == [
        "norm1.weight", "norm1.bias", "conv1.weight",
        "norm2.weight", "norm2.bias", "conv2.weight", "shortcut.weight",
    ]  # fmt: skip


@pytest.mark.parametrize("kind", [Norm, NormSiLU])
def test_the_output_has_the_dtype_of_autocast(kind):
    layer, x = kind(8), torch.randn(2, 8, 3, 3)
    assert layer(x).dtype == torch.float32
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            assert layer(x).dtype == dtype and layer(x.bfloat16()).dtype == dtype
            assert kind(8).to("meta")(x.to("meta")).dtype == torch.float32  # has no autocast


def on_cuda(dtype: torch.dtype) -> SimpleNamespace:
    """What the choice looks at, of a tensor that is not to be had here."""
    return SimpleNamespace(is_cuda=True, dtype=dtype, device=torch.device("cpu"))


def test_kernels_are_for_cuda_and_not_for_float64(monkeypatch):
    monkeypatch.setattr(module, "runs_on", lambda *_: True)
    assert module.serve(on_cuda(torch.bfloat16))
    assert not module.serve(on_cuda(torch.float64))
    assert not module.serve(torch.zeros(1))


def test_without_triton_there_is_one_warning_and_the_plain_expression(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "semvq.kernels.norm_silu", raising=False)
    monkeypatch.delattr("semvq.kernels.norm_silu", raising=False)
    module.runs_on.cache_clear()
    with pytest.warns(UserWarning, match="expected Triton.*found ModuleNotFoundError.*install"):
        assert not module.serve(on_cuda(torch.float32))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not module.serve(on_cuda(torch.float32))
    module.runs_on.cache_clear()


def test_nothing_is_tried_while_a_graph_is_traced(monkeypatch):
    layer, x = NormSiLU(8), torch.randn(2, 8, 3, 3)
    assert torch.equal(torch.compile(layer, backend="eager", fullgraph=True)(x), layer(x))
    monkeypatch.setattr(module, "runs_on", lambda *_: False)
    assert not module.serve(on_cuda(torch.float32))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert module.serve(on_cuda(torch.float32))


def test_triton_is_not_imported_with_the_layers():
    python("-c", "import sys, semvq.tokenizer.model; assert 'triton' not in sys.modules")


def test_kernels_that_compute_something_else_are_not_used(monkeypatch):
    def plain(x, weight, bias, groups, eps, dtype, silu):
        y = F.group_norm(x, groups, weight, bias, eps)
        return F.silu(y) if silu else y, None, None

    monkeypatch.setattr(module, "fused_norm", plain)  # right, but for its gradients
    wrong = (torch.zeros(2, 12, 7, 5), torch.zeros(12), torch.zeros(12))
    monkeypatch.setattr(module, "fused_norm_backward", lambda *_: wrong)
    module.runs_on.cache_clear()
    with pytest.warns(UserWarning, match="found ArithmeticError: results off by"):
        assert not module.serve(on_cuda(torch.float32))
    module.runs_on.cache_clear()
