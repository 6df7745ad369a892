"""The kernel of the nearest-code search, the bounds it relies on, and what is decided after it."""

import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor

from semvq.kernels import nearest_halves as half
from semvq.kernels import trial
from semvq.tokenizer import nearest as module
from semvq.tokenizer.nearest import nearest_code
from tests.interpreter import interpreted, python
from tests.nearest_cases import CASES, PROBLEMS, brute_force, kernel, normal


@pytest.fixture(scope="module")
def outcomes() -> dict[str, str]:
    return interpreted("tests.nearest_cases")


@pytest.mark.parametrize("case", CASES)
def test_the_kernel_in_the_interpreter(case, outcomes):
    assert outcomes[case] == ""


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("case", CASES)
def test_the_kernel_on_a_gpu(case):
    CASES[case]("cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("serves", [True, False])
def test_a_large_search_is_exact_and_takes_little_memory(serves):
    if torch.cuda.mem_get_info()[0] < 8 * 2**30:
        pytest.skip("needs 8 GiB of GPU memory")
    rows, codebook = normal(65_536, 256).cuda(), normal(262_144, 256, seed=1).cuda()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    with kernel(serves):
        codes = nearest_code(rows, codebook)
    assert torch.cuda.max_memory_allocated() - before < 2 * 2**30
    some = torch.arange(0, len(rows), 128)
    expected = torch.cat(
        [torch.cdist(r.double(), codebook.double()).argmin(1) for r in rows[some].split(64)]
    )
    assert torch.equal(codes[some.cuda()], expected)


COMPILE = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from semvq.kernels import nearest as kernels

TYPES = {"rows": "*fp16", "codes": "*fp16", "places": "*i32", "tiles": "i32", "tiles_each": "i32"}
kernel = kernels._search
# KiB of shared memory that a block may have
for width, capability, shared in ((256, 90, 227), (512, 80, 163)):
    piece = width if width <= 256 else kernels.PIECE
    tiles = next(t for t in kernels.TILES if t.shared(width) <= (shared - 4) * 1024)
    given = {"WIDTH": width, "PIECE": piece, "BLOCK_N": tiles.rows, "BLOCK_K": tiles.codes}
    signature = {
        name: "constexpr" if name in given else TYPES.get(name, "*fp32")
        for name in kernel.arg_names
    }
    constants = {(kernel.arg_names.index(name),): value for name, value in given.items()}
    pointers = [i for i, name in enumerate(kernel.arg_names) if "*" in signature[name]]
    aligned = {(i,): [["tt.divisibility", 16]] for i in pointers}
    source = ASTSource(kernel, signature, constants, aligned)
    options = {"num_warps": tiles.warps, "num_stages": tiles.stages}
    built = compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    assert built.asm["cubin"] and built.metadata.shared <= shared * 1024, (width, capability)
    print(width)
"""


def test_the_kernel_compiles_for_gpus_that_are_not_here_and_fits_them(tmp_path):
    """The interpreter takes more than the compiler does, and shared memory without end."""
    triton = pytest.importorskip("triton", minversion="3.3")  # earlier signatures are others
    if not (Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas").exists():
        pytest.skip("this Triton has no compiler for NVIDIA's GPUs")
    output = python("-c", COMPILE, TRITON_CACHE_DIR=str(tmp_path), TRITON_INTERPRET="0")
    assert output.split() == ["256", "512"]


def worst_three(sign: float):
    """In the kernel's place: exact products, then moved by what tensor cores may get wrong.

    The nearest are moved up by all of that and the others down, or the other way round.
    """

    def find(rows: Tensor, codes: Tensor, halves: Tensor, windows: Tensor):
        rows, codes = rows.double(), codes.double()
        scores = halves.double() - rows @ codes.t()
        accumulation = 0.9 * (rows.shape[1] + 8) * 2.0**-22
        largest = codes.norm(dim=1).max()
        wrong = accumulation * largest * rows.norm(dim=1, keepdim=True)
        away = scores - scores.amin(1, keepdim=True) < windows[:, None] / 2
        scores = torch.where(away, scores + sign * wrong, scores - sign * wrong)
        scores = torch.nn.functional.pad(scores, (0, 3), value=torch.inf)
        found = scores.topk(3, 1, largest=False)
        # what is outside of the window may be missing
        missing = found.values > found.values[:, :1] + windows[:, None]
        values = torch.where(missing, torch.inf, found.values).t().float()
        return values, torch.where(missing, 0, found.indices)[:, :2].t()

    return find


@pytest.mark.parametrize("sign", [-1.0, 0.0, 1.0])
@pytest.mark.parametrize("problem", PROBLEMS)
def test_what_follows_the_kernel_is_exact(problem, sign, monkeypatch):
    rows, codebook = PROBLEMS[problem]()
    monkeypatch.setattr(half, "best_three", worst_three(sign))
    with kernel(True):
        assert torch.equal(nearest_code(rows, codebook), brute_force(rows, codebook))


@pytest.mark.parametrize("problem", PROBLEMS)
def test_the_product_in_chunks_is_exact(problem, monkeypatch):
    rows, codebook = PROBLEMS[problem]()
    expected = brute_force(rows, codebook)
    assert torch.equal(nearest_code(rows, codebook), expected)
    monkeypatch.setattr(module, "_CHUNK", 7 * len(codebook))
    assert torch.equal(nearest_code(rows, codebook), expected)


def test_most_rows_are_sure_and_most_others_have_two_candidates():
    """As many as the margins of random rows say, so that bounds are not merely safe."""
    problem = module._problem(normal(500, 256), normal(8192, 256, seed=1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(half, "best_three", worst_three(0.0))
        _, _, unsure = half.propose(*problem)
    assert unsure.gt(0).float().mean() < 0.12 and unsure.eq(2).float().mean() < 0.02


@pytest.mark.parametrize("problem", PROBLEMS)
def test_bounds_are_bounds(problem):
    """Of products of what is rounded to half precision, and of fp32 products, against float64."""
    found = module._problem(*PROBLEMS[problem]())
    rows, codes = found.rows.double(), found.codes.double()
    exact = codes.square().sum(1) / 2 - rows @ codes.t()
    half_rows, half_codes = found.rows.half(), found.codes.half()
    scores = found.norms.double() / 2 - half_rows.double() @ half_codes.double().t()
    bound = half_bound(found).double()
    fine = half_rows.isfinite().all(1)
    assert (scores - exact).abs()[fine].le(bound[fine, None]).all()
    fp32 = module._scores(found, found.rows).double()
    bound = module._product_bound(found).double()
    assert (fp32 - 2 * exact).abs().le(bound[:, None]).logical_or(bound.isinf()[:, None]).all()


def half_bound(problem: module._Problem) -> Tensor:
    rows, codes, _, sizes, largest, blur, _ = problem
    return half.half_bound(rows, codes, sizes, largest) + blur


def test_rounding_that_conspires_stays_within_the_bound():
    """All entries just under half way between two numbers, and all codes along the row."""
    row = torch.full((1, 256), 1 + 2.0**-11 - 2.0**-23)
    codebook = torch.cat([row, row * 1.5, -row])
    found = module._problem(row, codebook)
    half_row, half_codes = found.rows.half(), found.codes.half()
    exact = found.codes.double().square().sum(1) / 2 - found.rows.double() @ found.codes.double().T
    scores = found.norms.double() / 2 - half_row.double() @ half_codes.double().T
    error = (scores - exact).abs().amax()
    assert 0 < error <= half_bound(found).item()


def on_cuda() -> Tensor:
    """What the choice looks at, of a tensor that is not to be had here."""

    class Rows:
        is_cuda = True
        device = torch.device("cpu")

    return Rows()  # type: ignore[return-value]


def test_without_triton_there_is_one_warning(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "semvq.kernels.nearest", raising=False)
    monkeypatch.delattr("semvq.kernels.nearest", raising=False)
    assert not half.serve(torch.zeros(1))
    trial.runs_on.cache_clear()
    with pytest.warns(UserWarning, match="expected Triton.*found ModuleNotFoundError.*install"):
        assert not half.serve(on_cuda())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not half.serve(on_cuda())
    trial.runs_on.cache_clear()


def test_a_kernel_that_computes_something_else_is_not_used(monkeypatch):
    def wrong(rows: Tensor, codes: Tensor, halves: Tensor, windows: Tensor):
        values, places = worst_three(0.0)(rows, codes, halves, windows)
        return values + 0.01, places

    for found, serves in ((worst_three(0.0), True), (wrong, False)):
        monkeypatch.setattr(half, "best_three", found)
        trial.runs_on.cache_clear()
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            assert half.serve(on_cuda()) == serves
        assert serves or "found ArithmeticError: scores off by 0.01" in str(seen[0].message)
    trial.runs_on.cache_clear()


def test_triton_is_not_imported_with_the_search():
    python("-c", "import sys, semvq.tokenizer.nearest; assert 'triton' not in sys.modules")
